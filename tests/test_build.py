"""The build's refusals say what is missing and how to go on; the install without kernels works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _configure(tmp_path: Path, *arguments: str, **environment: str) -> str:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed here; pip brings one into the build")
    result = subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython_EXECUTABLE={sys.executable}", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    return " ".join(result.stderr.split())  # cmake wraps its messages


def test_missing_compiler_is_named_with_the_way_out(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "ninja", "uname", "sh"):  # what cmake itself needs, and no compiler
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    message = _configure(tmp_path, PATH=str(tools), CXX="", CC="")
    assert "need a C++20 compiler and none was found" in message
    assert "apt-get install g++" in message
    assert "DWSEP_NO_NATIVE=1 pip install ." in message


def test_missing_torch_is_named_with_the_way_out(tmp_path):
    message = _configure(tmp_path, f"-DDWSEP_TORCH_DIR={tmp_path}")
    assert "install torch 2.11 or newer first (pip install torch)" in message


def test_install_without_kernels_runs_on_the_reference(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        env={**os.environ, "DWSEP_NO_NATIVE": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("dwsep-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(site)
    script = f"""
import sys, sysconfig, torch
# The folder of an installed dwsep must not lend its library.
sysconfig.get_paths = lambda real=sysconfig.get_paths: {{**real(), 'platlib': {str(tmp_path)!r}}}
import dwsep
assert dwsep.__file__.startswith({str(site)!r}), dwsep.__file__
status = dwsep.ops.native_status()
assert not status.loaded and 'DWSEP_NO_NATIVE' in status.reason, status
layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6, activation='relu')
layer(torch.ones(2, 4, 5, 5)).sum().backward()
x = torch.ones(1, 1, 3, 3)
print(torch.ops.dwsep.depthwise_conv(x, x, None, [1, 1], [1] * 4, [1, 1], 'none').sum().item())
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("DWSEP_LIBRARY", "DWSEP_ISA")}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "49.0"
