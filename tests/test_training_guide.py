"""The guide to training: its snippet runs, its options exist, its picture is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dwsep.cli._train_options import options_of
from tests import forks

PATH = Path(__file__).parents[1] / "docs" / "training.md"
TEXT = PATH.read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_snippet_prints_what_it_says(tmp_path):
    (snippet,) = (text for language, text in BLOCKS if language == "python")
    result = forks.run(f"import os\nos.chdir({str(tmp_path)!r})\n{snippet}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == re.findall(r"#> (.*)", snippet)


def test_the_settings_are_settings(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    from dwsep.training.config import make_config, read_yaml

    (text,) = (text for language, text in BLOCKS if language == "yaml")
    (tmp_path / "earth.yaml").write_text(text)
    assert make_config(read_yaml(tmp_path / "earth.yaml")).task == "segment"


def test_every_option_named_is_one():
    known = {"help", "config", "output-dir", "resume", "checkpoint", "nproc-per-node", "json", "threads", "test-data"}
    known |= {"sweep"}  # pytest's
    for task in ("classify", "segment", "text", "series"):
        for option in options_of(task):
            flags = option.flags or (f"--{option.field.replace('_', '-')}",)
            known |= {flag.removeprefix("--") for entry in flags for flag in entry.split("/")}
    named = set(re.findall(r"--([a-z][a-z-]*)", TEXT))
    assert named <= known, named - known


def test_what_is_linked_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert all((PATH.parent / link).exists() for link in links), links
