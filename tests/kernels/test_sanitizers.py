"""The operators under AddressSanitizer and UndefinedBehaviorSanitizer; ``make sanitize`` runs more of the tests so."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dwsep

ROOT = Path(__file__).parents[2]


@pytest.mark.sweep
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason=f"native: {dwsep.ops.native_status().reason}")
@pytest.mark.skipif(platform.system() != "Linux", reason="preloads GCC's sanitizers as Linux does")
@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("cmake") is None, reason="needs g++ and cmake")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded")
def test_operators_are_clean_under_sanitizers():
    finished = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sanitize.py", "--quick"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-6000:]
    assert "sanitize: no error found" in finished.stdout.splitlines()[-1]
