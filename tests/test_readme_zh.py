"""README.zh-CN.md says what README.md says: the same sections, commands, snippets, figures and links."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
_BLOCK = re.compile(r"^```\w*\n.*?^```$", re.DOTALL | re.MULTILINE)
# One of each names the other file and nothing else.
_OTHER_LANGUAGE = re.compile(r"^.*\]\(README(\.zh-CN)?\.md\).*$", re.MULTILINE)


def sections(name: str, text: str | None = None) -> list[tuple[str, str, list[str]]]:
    """Heading, prose and code blocks of every section, the first of which has the title for its heading."""
    text = (ROOT / name).read_text(encoding="utf-8") if text is None else text
    blocks = _BLOCK.findall(text)
    text = _OTHER_LANGUAGE.sub("", _BLOCK.sub("\0", text))
    found = []
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE)[1:]:
        heading, _, prose = part.partition("\n")
        count = prose.count("\0")
        found.append((heading, prose, blocks[:count]))
        blocks = blocks[count:]
    return found


def figures(prose: str) -> Counter[str]:
    """The numbers in the prose, those of names and code among them."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\([^)]*\)", "]", prose)))


def links(prose: str) -> Counter[str]:
    return Counter(re.findall(r"\]\(([^)]*)\)", prose))


def code(prose: str) -> Counter[str]:
    return Counter(" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose))


def differences(english: list, chinese: list) -> list[str]:
    """What is to be changed in the Chinese file, a line each."""
    levels = [[heading.split(" ")[0] for heading, _, _ in part] for part in (english, chinese)]
    if levels[0] != levels[1]:
        headings = [", ".join(heading for heading, _, _ in part) for part in (english, chinese)]
        return [f"{CHINESE} must have the sections of {ENGLISH}, in their order: {headings[0]}; it has {headings[1]}"]
    found = []
    for (heading, prose, blocks), (theirs, their_prose, their_blocks) in zip(english, chinese, strict=True):
        where = f"{CHINESE}, section {theirs!r} ({heading!r} in {ENGLISH})"
        for index, block in enumerate(blocks):
            if index >= len(their_blocks) or their_blocks[index] != block:
                found.append(f"{where}: code block {index + 1} must be a copy of\n{block}")
        if len(their_blocks) > len(blocks):
            found.append(f"{where}: {len(their_blocks)} code blocks, {ENGLISH} has {len(blocks)}")
        for what, read in (("figures", figures), ("links", links), ("code", code)):
            ours, other = read(prose), read(their_prose)
            for verb, more in (("lacks", ours - other), ("has and should not have", other - ours)):
                if more:
                    found.append(f"{where} {verb} the {what} {', '.join(sorted(more.elements()))}")
    return found


def test_the_chinese_readme_is_in_step():
    found = differences(sections(ENGLISH), sections(CHINESE))
    assert not found, "\n".join(["README.md has changed; bring the translation in step:", *found])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("## Install", "## Install\n\n## More", "must have the sections"),
        ("dwsep doctor\n```", "dwsep doctor --json\n```", "code block 3 must be a copy of"),
        ("101 networks", "102 networks", "lacks the figures 102"),
        ("(docs/analyze.md)", "(docs/analysis.md)", "lacks the links docs/analysis.md"),
        ("`DWSEP_ISA`", "`DWSEP_CPU`", "lacks the code DWSEP_CPU"),
    ],
)
def test_what_is_out_of_step_is_named(old, new, told):
    text = (ROOT / ENGLISH).read_text(encoding="utf-8")
    assert old in text
    found = differences(sections(ENGLISH, text.replace(old, new)), sections(CHINESE))
    assert any(told in line for line in found), found
