"""What of the GPU's benchmark runs without one: its problems, its peers' results, its table and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from dwsep.bench import cuda
from dwsep.cli.main import app


@pytest.mark.parametrize("position", range(len(cuda.CASES)))
def test_stock_peers_compute_the_truth(position):
    case = cuda.CASES[position]
    small = tuple(min(size, 40) for size in case.spatial)
    problem = cuda.make_problem(replace(case, batch=1, channels=2, out_channels=2, spatial=small), "float32", "cpu")
    expected = cuda.truth(problem)
    assert [tensor.dtype for tensor in expected] == [torch.float64] * 3
    for name in ("NCHW", "NHWC", "NCHW, no cuDNN"):
        assert cuda.error_of(cuda.PEERS[name](problem)(), expected) < cuda.TOLERANCE["float32"]
    wrong = [expected[0], expected[1], expected[2] * 1.001]
    assert cuda.error_of(wrong, expected) > cuda.TOLERANCE["float32"]
    assert cuda.error_of([tensor * float("nan") for tensor in expected], expected) == float("inf")


def test_floor_counts_six_passes():
    problem = cuda.make_problem(replace(cuda.CASES[0], batch=1, spatial=(8, 8)), "bfloat16", "cpu")
    assert problem.bytes == 6 * 128 * 64 * 2


def test_table_gives_the_ratio_to_the_best_peer():
    peers = {
        "dwsep": {"status": "ok", "median": 2e-4},
        "dwsep NHWC": {"status": "ok", "median": 1e-4},
        "NCHW": {"status": "ok", "median": 4e-4},
        "NHWC": {"status": "ok", "median": 3e-4},
        "compile": {"status": "wrong", "reason": "relative error 1"},
    }
    record = {"case": "a", "batch": 1, "dtype": "float32", "bytes": 10**8, "peers": peers}
    row = cuda.table([record], 1e12).splitlines()[-1]
    assert row == "| a | 1 | float32 | 100 | 200 | 100 | 400 | 300 | wrong | 3.00 (NHWC) |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
@pytest.mark.parametrize(
    "options, message",
    [
        (["--training"], "torch sees no CUDA device"),
        ([], "needs --training"),
        (["--training", "--quick"], "takes no --quick"),
        (["--training", "--set", "separable"], "takes no --set"),
        (["--training", "--case", "nothing"], "nothing"),
    ],
)
def test_command_refuses(options, message):
    result = CliRunner().invoke(app, ["bench", "layers", "--device", "cuda", *options])
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
