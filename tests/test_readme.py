"""Every snippet and command of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import forks

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
SESSIONS = [
    [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    for language, text in BLOCKS
    if language == "console"
]
COMMANDS = [command for session in SESSIONS for command in session]


def test_readme_has_snippets_and_commands():
    assert SNIPPETS
    assert COMMANDS
    assert {language for language, _ in BLOCKS} <= {"python", "console", "text"}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path):
    result = forks.run(f"import os\nos.chdir({str(tmp_path)!r})\n{snippet}")
    assert result.returncode == 0, result.stderr
    expected = re.findall(r"#> (.*)", snippet)
    assert result.stdout.splitlines() == expected


@pytest.mark.parametrize("session", [s for s in SESSIONS if any(c.startswith("dwsep ") for c in s)], ids=" && ".join)
def test_dwsep_commands_run(session, tmp_path):
    for command in session:  # in one folder: a later command uses what an earlier one wrote
        words = shlex.split(command)
        if words[:2] == ["dwsep", "demo"]:
            words.append("--quick")  # the whole takes minutes; make test-all runs it from a clone
        if words[:3] == ["dwsep", "bench", "networks"]:  # minutes for all networks, at full size, against all peers
            words[3:3] = ["mobilenetv2_100"] * words[3].startswith("--")
            words += ["--quick", "--size", "32", "--peers", "nchw"]
        if words[0] == "dwsep":
            script = f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.argv = {words!r}\n"
            result = forks.run(script + "from dwsep.cli import main\nmain.main()")
            assert result.returncode == 0, command + result.stdout + result.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("dwsep ")])
def test_other_command_names_what_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True, cwd=ROOT)
    elif words[:2] == ["git", "clone"]:
        assert len(words) == 3
    else:
        assert command in (
            "cd dwsep",
            "pip install torch",
            "pip install '.[train,report]'",
            "DWSEP_NO_NATIVE=1 pip install .",
        )


@pytest.mark.sweep
@pytest.mark.timeout(3000)
def test_make_demo_from_a_clone(tmp_path):
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "dwsep")], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DWSEP_")}
    subprocess.run(["make", "demo"], check=True, cwd=tmp_path / "dwsep", env=environment)
    for name in ("results.json", "report.html"):
        assert (tmp_path / "dwsep" / "runs" / "demo" / name).stat().st_size > 1000
