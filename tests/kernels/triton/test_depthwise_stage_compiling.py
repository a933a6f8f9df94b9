"""The kernels of the stages and of the separable convolution compile for GPUs that are not here, and spill nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from tests.kernels.triton.compiled import check, compile_all

PROGRAM = "depthwise_stage_compiling.py"


@pytest.mark.parametrize(
    "arch, dtype, layer", [("75", "float16", "12"), ("80", "float32", "12"), ("90", "bfloat16", "2")]
)
def test_stages_compile(arch, dtype, layer, tmp_path):
    records = compile_all(tmp_path, "--arch", arch, "--dtype", dtype, "--layer", layer, program=PROGRAM)
    assert len(records) == (5 if layer == "2" else 4)
    check(records)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["75", "80", "90"])
def test_all_stages_compile(arch, dtype, tmp_path):
    records = compile_all(tmp_path, "--arch", arch, "--dtype", dtype, program=PROGRAM)
    assert len(records) > 50
    check(records)
