"""The kernels compile for GPUs that are not here, and spill nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from tests.kernels.triton.compiled import check, compile_all


def test_kernels_compile(tmp_path):
    # One class of shapes for each architecture, and a larger one for one: the sweep compiles all for all.
    every = ["--arch", "75", "--arch", "80", "--arch", "90"]
    records = compile_all(tmp_path, *every, "--dtype", "bfloat16", "--geometry", "10")
    records += compile_all(tmp_path, "--arch", "90", "--dtype", "float32", "--geometry", "0")
    assert len(records) == 4 * 8
    check(records)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", ["75", "80", "90"])
def test_all_kernels_compile(arch, tmp_path):
    dtypes = [option for name in ("float32", "float16", "bfloat16") for option in ("--dtype", name)]
    records = compile_all(tmp_path, "--arch", arch, *dtypes)
    assert len(records) == 12 * 3 * 8
    check(records)


def check_shared_memory(records: list[dict]) -> None:
    """A program's shared memory is no more than the GPUs of its architecture have, those of 8.6 and 8.9 included."""
    assert [record for record in records if record["shared"] > (65_536 if record["arch"] < 80 else 101_376)] == []


def test_stages_compile(tmp_path):
    program = "pointwise_compiling.py"
    records = []
    for arch, dtype, shape in (("75", "float16", "1"), ("80", "bfloat16", "10"), ("90", "float32", "4")):
        records += compile_all(tmp_path, "--arch", arch, "--dtype", dtype, "--shape", shape, program=program)
    assert len(records) == 5 + 4 + 4
    tensors = compile_all(
        tmp_path, "--arch", "90", "--dtype", "bfloat16", "--shape", "10", "--tensors", program=program
    )
    assert len(tensors) == 11
    check(records + tensors)
    check_shared_memory(records + tensors)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", ["75", "80", "90"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_stages_compile(dtype, arch, tmp_path):
    program = "pointwise_compiling.py"
    options = ["--arch", arch, "--dtype", dtype]
    records = compile_all(tmp_path, *options, program=program)
    assert len(records) >= 15 * 4
    if dtype == "float32":
        records += compile_all(tmp_path, *options, "--precision", "ieee", program=program)
    records += compile_all(tmp_path, *options, "--tensors", program=program)
    check(records)
    check_shared_memory(records)
