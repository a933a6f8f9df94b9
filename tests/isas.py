"""Running a test on a named instruction set: the path is fixed when the library is loaded, so each is a process."""

from __future__ import annotations

import pytest

import dwsep
from tests import forks

SUPPORTED = dwsep.ops.native_status().supported_isas
# The paths that CPUs of today take, where what a test compares with takes longest; the sweep has the portable one too.
_PORTABLE = [pytest.mark.sweep] if len(SUPPORTED) > 1 else []
USUAL = [pytest.param(isa, marks=_PORTABLE if isa == "portable" else []) for isa in SUPPORTED]
# Those that multiply operands rounded to bfloat16 where a network's are.
BFLOAT16 = ("avx512_bf16", "amx", "amx_fp32")


# Uninitialised memory is NaN there too, as tests/conftest.py has it in the tests' own process.
_BEFORE = "import torch\ntorch.use_deterministic_algorithms(True)\n"
_AFTER = "\nimport dwsep\nprint(dwsep.ops.native_status().isa)"


def run_on(isa: str, script: str) -> None:
    """Run Python source with one instruction set in use; an exception in it fails the test."""
    result = forks.run(_BEFORE + script + _AFTER, {"DWSEP_ISA": isa})
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == isa
