"""The kernels of the stages and of the separable convolution compile for GPUs that are not here, and spill nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")


def check(records: list[dict]) -> None:
    """Every kernel has PTX and a cubin without spills; what it uses is printed."""
    for record in records:
        print(*(record[key] for key in ("geometry", "kernel", "dtype", "arch", "registers", "shared", "spills")))
    assert all(record["ptx"] and 0 < record["registers"] <= 255 for record in records)
    assert [record for record in records if record["spills"]] == []


def compile_all(tmp_path: Path, *options: str) -> list[dict]:
    """What the program beside this file reports, run without the interpreter and with an empty cache."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("depthwise_stage_compiling.py")), *options]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "arch, dtype, layer", [("75", "float16", "12"), ("80", "float32", "12"), ("90", "bfloat16", "2")]
)
def test_stages_compile(arch, dtype, layer, tmp_path):
    records = compile_all(tmp_path, "--arch", arch, "--dtype", dtype, "--layer", layer)
    assert len(records) == (5 if layer == "2" else 4)
    check(records)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["75", "80", "90"])
def test_all_stages_compile(arch, dtype, tmp_path):
    records = compile_all(tmp_path, "--arch", arch, "--dtype", dtype)
    assert len(records) > 50
    check(records)
