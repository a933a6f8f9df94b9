"""Paths that this CPU cannot run natively: 512-bit vectors made of shorter ones, and NEON under an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU_SOURCES = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))
FLAGS = ["-std=c++20", "-ffp-contract=fast", "-Wall", "-Wextra", "-pedantic", "-Werror", "-DDWSEP_WITHOUT_TORCH"]


def _build(compiler: str, tmp_path: Path, isas: dict[str, list[str]], *extra: str) -> Path:
    """The harness with the given instruction sets; flags of each apply to its own file, `extra` to all."""
    defines = [f"-DDWSEP_HAS_{isa.upper()}" for isa in isas]
    common = [compiler, *FLAGS, *extra, *defines, f"-I{ROOT / 'csrc'}", "-c"]
    objects = []

    def compile_one(source: Path, flags: list[str]) -> None:
        target = tmp_path / f"{source.stem}.o"
        subprocess.run([*common, *flags, str(source), "-o", str(target)], check=True)
        objects.append(str(target))

    for name in CPU_SOURCES:
        compile_one(ROOT / "csrc" / "cpu" / f"{name}.cpp", [])
    for isa, flags in isas.items():
        compile_one(ROOT / "csrc" / "cpu" / "simd" / f"isa_{isa}.cpp", flags)
    compile_one(ROOT / "tests" / "native" / "harness.cpp", [])
    program = tmp_path / "harness"
    subprocess.run([compiler, *objects, "-static", "-o", str(program)], check=True)
    return program


@pytest.mark.sweep
@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for x86-64")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_wide_vectors_exact_without_avx512(tmp_path):
    # The AVX-512 path's logic (16 lanes, 14 x 32 tiles) on any CPU with AVX2. It proves nothing of the instructions.
    # Optimised, vectors made of shorter ones take g++ ten minutes of a core and more, and most of the time is g++'s.
    isas = {"portable": [], "avx512": ["-Wno-psabi", "-mavx2", "-mfma"]}
    program = _build("g++", tmp_path, isas, "-O0", "-DDWSEP_EMULATE_AVX512")
    output = subprocess.run([str(program), "150"], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == ["portable 150", "avx512 150"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler: g++-aarch64-linux-gnu")
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no emulator: qemu-user")
def test_neon_exact_under_emulation(tmp_path):
    program = _build("aarch64-linux-gnu-g++", tmp_path, {"portable": [], "neon": []}, "-O1")
    output = subprocess.run(
        [shutil.which("qemu-aarch64") or "", str(program), "100"], check=True, capture_output=True, text=True
    ).stdout
    assert output.splitlines() == ["portable 100", "neon 100"]
