"""Running a test on a named instruction set: the path is fixed when the library is loaded, so each is a process."""

from __future__ import annotations

import os
import subprocess
import sys

import dwsep

SUPPORTED = dwsep.ops.native_status().supported_isas


def run_on(isa: str, script: str) -> None:
    """Run Python source with one instruction set in use; an exception in it fails the test."""
    script += "\nimport dwsep\nprint(dwsep.ops.native_status().isa)"
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "DWSEP_ISA": isa}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == isa
