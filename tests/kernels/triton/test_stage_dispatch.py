"""The stage operators' implementations for GPUs: the same results in the same layouts as anywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dwsep  # noqa: F401  (defines the operators)
from dwsep.kernels.triton import support
from dwsep.ops._stage_cuda import IMPLEMENTATIONS
from tests.problems import last

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import pointwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _machine_that_can(monkeypatch):
    monkeypatch.setattr(support, "_PACKAGE_REASONS", ())
    monkeypatch.setattr(support, "_capability_reasons", lambda device: ())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(pointwise, "_precision", lambda x: "ieee")


def draw(*size: int) -> Tensor:
    """Normal numbers; channels innermost."""
    drawn = torch.randn(size, device=DEVICE)
    return last(drawn) if len(size) > 2 else drawn


def calls(affine: bool) -> list[tuple]:
    """Operators and arguments."""
    x, grad, y, correction = draw(2, 20, 6, 5), draw(2, 7, 6, 5), draw(2, 7, 6, 5), draw(2, 7)
    scale, shift = (draw(20), draw(20)) if affine else (None, None)
    load, gate, weight = (x, scale, shift, "hardswish"), draw(2, 20), draw(7, 20, 1, 1)
    back = grad, y, correction if affine else None, *load, weight
    return [
        ("pointwise_stage", *load, weight, draw(7) if affine else None),
        ("pointwise_stage_backward", *back, affine, [True, True]),
        ("pointwise_stage_backward", *back, True, [False, True]),
        ("pointwise_stage_backward", *back, True, [True, False]),
        ("stage_output", *load, draw(2, 20, 6, 5) if affine else None),
        ("stage_output_backward", x + 1, *load),
        ("stage_sums", x),
        ("stage_corrected", grad, y, correction),
        ("stage_statistics", draw(2, 9).double().abs() + 20, 30, draw(9), draw(9), 1e-5, 0.1, None, None),
        ("stage_correction", draw(2, 9).double(), draw(9), draw(9).abs(), draw(9), 30),
        ("stage_pool", *load),
        ("stage_gate", *load, gate),
        ("stage_gate_gradient", x + 1, *load),
        ("stage_squeeze_backward", x + 1, gate, gate, *load),
        ("stage_squeeze_backward", None, None, gate, *load),
    ]


def results(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """An operator's results."""
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.parametrize("affine", [True, False])
def test_results_are_the_same_as_elsewhere(affine):
    listed = calls(affine)
    assert set(IMPLEMENTATIONS) >= {name for name, *_ in listed}
    for name, *arguments in listed:
        found = results(IMPLEMENTATIONS[name](*arguments))
        on_cpu = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
        expected = results(getattr(torch.ops.dwsep, name)(*on_cpu))
        for got, want in zip(found, expected, strict=True):
            assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride()), name
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_types_that_no_kernel_takes_run_on_the_reference():
    for name, *arguments in calls(True):
        if name in ("stage_statistics", "stage_correction"):
            continue
        wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
        found, expected = results(IMPLEMENTATIONS[name](*wide)), results(IMPLEMENTATIONS[name](*arguments))
        assert found[0].dtype == torch.float64
        for got, want in zip(found, expected, strict=True):
            assert got.stride() == want.stride()
            torch.testing.assert_close(got, want.double(), rtol=1e-4, atol=1e-4)


def test_gate_and_gradient_are_given_together():
    x = draw(2, 20, 6, 5)
    with pytest.raises(RuntimeError, match="together"):
        IMPLEMENTATIONS["stage_squeeze_backward"](x, None, None, x, None, None, "none")
