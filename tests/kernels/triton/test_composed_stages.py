"""Dense and mixed stages made of other operators, as GPUs run them, against the references in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import dwsep  # noqa: F401  (defines the operators)
from dwsep.kernels import stage_reference
from tests.problems import last

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import dense_stage, mixed_stage, stage_passes


def wide(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def close(got, wanted, bound=3e-6):
    if wanted is None:
        assert got is None
        return
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() < bound * (wanted.norm() + 10)


GEOMETRIES = {
    "stem": ([2, 2], [1, 1, 1, 1], [1, 1]),
    "asymmetric": ([2, 1], [0, 1, 2, 1], [1, 2]),
    "cropping": ([1, 1], [-1, 1, 0, 0], [1, 1]),
}


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, True]])
@pytest.mark.parametrize("pending", ["plain", "activation", "norm"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_dense(geometry, pending, mask):
    torch.manual_seed(0)
    x, weight, bias = last(torch.randn(2, 5, 9, 8)), torch.randn(7, 5, 3, 2), torch.randn(7)
    scale, shift = (torch.randn(5), torch.randn(5)) if pending == "norm" else (None, None)
    before = (x, scale, shift, "none" if pending == "plain" else "hardswish", weight)
    y, sums = dense_stage.forward(*before, bias, *GEOMETRIES[geometry])
    expected, expected_sums = stage_reference.dense_stage(*map(wide, (*before, bias)), GEOMETRIES[geometry])
    close(y, expected)
    close(sums, expected_sums)
    correction = torch.randn(2, 7) if pending == "norm" else None
    after = (last(torch.randn_like(y)), y, correction)
    found = dense_stage.backward(*after, *before, True, *GEOMETRIES[geometry], mask)
    wanted = stage_reference.dense_stage_backward(*map(wide, (*after, *before)), True, GEOMETRIES[geometry], mask)
    for got, gradient in zip(found, wanted, strict=True):
        close(got, gradient)


def test_dense_takes_weights_of_another_dtype(monkeypatch):
    # The CPU's operators take float32 alone.
    monkeypatch.setattr(stage_passes, "ops", SimpleNamespace(stage_sums=stage_reference.sums_of))
    torch.manual_seed(0)
    x, weight, bias = last(torch.randn(2, 3, 8, 8).bfloat16()), torch.randn(8, 3, 3, 3), torch.randn(8)
    geometry = ([2, 2], [1, 1, 1, 1], [1, 1])
    y, sums = dense_stage.forward(x, None, None, "none", weight, bias, *geometry)
    assert y.dtype is torch.bfloat16
    close(sums, stage_reference.sums_of(y))  # of the output as it is stored
    close(y, stage_reference.dense_stage(*map(wide, (x, None, None, "none", weight, bias)), geometry)[0], 1e-2)
    grad = last(torch.randn_like(y))
    found = dense_stage.backward(grad, y, None, x, None, None, "none", weight, True, *geometry, [True, True])
    assert [one.dtype for one in found if one is not None] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, True]])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
def test_mixed(kind, affine, mask):
    torch.manual_seed(0)
    if kind == "depthwise":
        weights = [torch.randn(c, 1, k, k) for c, k in ((6, 3), (9, 5))]
        geometries = [([2, 2], [k // 2] * 4, [1, 1]) for k in (3, 5)]
        inputs = 15
    else:
        weights, geometries, inputs = [torch.randn(8, 4, 1, 1), torch.randn(3, 6, 1, 1)], [(), ()], 10
    outputs = sum(weight.shape[0] for weight in weights)
    flat = [[n for geometry in geometries if geometry for n in geometry[i]] for i in range(3)]
    x, bias = last(torch.randn(2, inputs, 7, 6)), torch.randn(outputs)
    scale, shift = (torch.randn(inputs), torch.randn(inputs)) if affine else (None, None)
    of_wide = (wide(x), wide(scale), wide(shift), "silu", [wide(weight) for weight in weights])
    y, sums = mixed_stage.forward(x, scale, shift, "silu", weights, bias, *flat)
    expected, expected_sums = stage_reference.mixed_stage(*of_wide, wide(bias), geometries)
    close(y, expected)
    close(sums, expected_sums)
    grad, correction = last(torch.randn_like(y)), torch.randn(2, outputs)
    found = mixed_stage.backward(grad, y, correction, x, scale, shift, "silu", weights, True, *flat, mask)
    wanted = stage_reference.mixed_stage_backward(
        wide(grad), wide(y), wide(correction), *of_wide, True, geometries, mask
    )
    for index in (0, 1, 3):
        close(found[index], wanted[index])
    assert (found[2] is None) == (wanted[2] is None)
    for got, gradient in zip(found[2] or (), wanted[2] or (), strict=True):
        close(got, gradient)
