"""Norms, outputs and gates between stages: their Triton kernels against the reference, interpreted without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.activations import NAMES
from tests.problems import exact, last

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import stage_gate, stage_launch, stage_norm, stage_output
from dwsep.kernels.triton.stage_launch import TensorProblem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((2, 16, 9, 7), (3, 5, 30), (1, 130, 4, 3))


def integers(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integers whose products and sums all types hold; channels innermost."""
    drawn = torch.randint(-1, 2, size, device=DEVICE).to(dtype)
    return last(drawn) if len(size) > 2 else drawn


def normal(*size: int) -> Tensor:
    """Normal numbers; channels innermost."""
    drawn = torch.randn(size, device=DEVICE)
    return last(drawn) if len(size) > 2 else drawn


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in float64."""
    return [tensor if tensor is None else tensor.double() for tensor in tensors]


@pytest.mark.parametrize("size, dtype", [*zip(SIZES, DTYPES, strict=True), (SIZES[0], torch.float16)])
def test_integers_are_exact(size, dtype):
    batch, channels = size[:2]
    x, grad, residual = (integers(*size, dtype=dtype) for _ in range(3))
    opened, mean = integers(batch, channels, dtype=dtype), integers(batch, channels, dtype=dtype) * 4
    correction = integers(2, channels)
    assert torch.equal(stage_norm.sums(x), stage_reference.sums_of(x))
    assert exact(stage_norm.corrected(grad, x, correction), stage_reference.corrected(*wide(grad, x, correction)))
    for scale, shift in ((integers(channels) + 2, integers(channels)), (None, None)):
        for activation in ("none", "relu6"):
            load, wide_load = (x, scale, shift, activation), (*wide(x, scale, shift), activation)
            for added in (residual, None):
                found = stage_output.forward(*load, added)
                assert found is not x
                assert exact(found, stage_reference.output(*wide_load, *wide(added)))
            pairs = [(stage_output.backward(grad, *load), stage_reference.through_affine(grad.double(), *wide_load))]
            for of in ((grad, opened, None), (grad, opened, torch.zeros_like(mean)), (None, None, mean * 0)):
                expected = stage_reference.squeeze_backward(*wide(*of), *wide_load)
                pairs.append((stage_gate.squeeze_backward(*of, *load), expected))
            for (got, sums), (want, want_sums) in pairs:
                assert exact(got, want)
                assert (sums is None) == (want_sums is None)
                assert sums is None or torch.equal(sums, want_sums)
            assert exact(stage_gate.gate(*load, opened), stage_reference.gate(*wide_load, opened.double()))
            found = stage_gate.gate_gradient(grad, *load)
            assert exact(found, stage_reference.gate_gradient(grad.double(), *wide_load))


@pytest.mark.parametrize("activation", ["none", *NAMES])
@pytest.mark.parametrize("affine", [True, False])
def test_floats_are_close(activation, affine):
    size = (2, 24, 9, 7)
    x, grad, residual = (normal(*size) for _ in range(3))
    opened, mean = normal(2, 24), normal(2, 24) * 10
    scale, shift = (normal(24), normal(24)) if affine else (None, None)
    load, wide_load = (x, scale, shift, activation), (*wide(x, scale, shift), activation)
    pairs = [
        (stage_output.forward(*load, residual), stage_reference.output(*wide_load, residual.double())),
        (stage_gate.pool(*load), stage_reference.pool(*wide_load)),
        (stage_gate.gate(*load, opened), stage_reference.gate(*wide_load, opened.double())),
        (stage_gate.gate_gradient(grad, *load), stage_reference.gate_gradient(grad.double(), *wide_load)),
        *zip(
            stage_output.backward(grad, *load), stage_reference.through_affine(grad.double(), *wide_load), strict=True
        ),
    ]
    for of in ((grad, opened, mean), (grad, opened, None), (None, None, mean)):
        expected = stage_reference.squeeze_backward(*wide(*of), *wide_load)
        pairs += zip(stage_gate.squeeze_backward(*of, *load), expected, strict=True)
    for got, want in pairs:
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


def test_sums_of_values_far_from_zero():
    x = normal(2, 24, 30, 40) + 3e3
    total, squares = stage_norm.sums(x)
    count = x.numel() // 24
    expected = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(squares / count - (total / count).square(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels, count", [(9, 30), (130, 1)])
@pytest.mark.parametrize("given", [(True,) * 4, (False,) * 4, (True, False, True, False), (False, True, False, True)])
def test_statistics(channels, count, given):
    values = normal(channels, count).double() if count > 1 else normal(channels, 1).double()
    sums = torch.stack([values.sum(1), values.square().sum(1)])
    tensors = [normal(channels) if wanted else None for wanted in given]
    reference = [tensor if tensor is None else tensor.clone() for tensor in tensors]
    found = stage_norm.statistics(sums, count, *tensors[:2], 1e-5, 0.1, *tensors[2:])
    expected = stage_reference.statistics(sums, count, *reference[:2], 1e-5, 0.1, *reference[2:])
    for got, want in zip((*found, *tensors), (*expected, *reference), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("has_weight", [True, False])
def test_correction(has_weight):
    channels, count = 140, 50
    grad_affine, mean, invstd = normal(2, channels).double(), normal(channels), normal(channels).abs() + 0.5
    weight = normal(channels) if has_weight else None
    correction, *found = stage_norm.correction_of(grad_affine, mean, invstd, weight, count)
    expected, *gradients = stage_reference.correction_of(grad_affine, mean, invstd, weight, count)
    torch.testing.assert_close(correction, expected, rtol=1e-6, atol=1e-7)
    for got, want in zip(found, gradients, strict=True):
        assert torch.equal(got, want)
    # What slope and offset add to a gradient has the mean that it should have, in spite of the slope's rounding.
    factor = invstd.double() if weight is None else invstd.double() * weight
    slope, offset = correction.double()
    rounding = 2.0**-24 * offset.abs() + 1e-12
    assert ((slope * mean + offset + factor * grad_affine[1] / count).abs() <= rounding).all()


def test_empty_tensors():
    x, scale, shift = torch.ones(0, 4, 3, 3, device=DEVICE), *torch.ones(2, 4, device=DEVICE)
    assert not stage_norm.sums(x).any()
    assert stage_norm.corrected(x, x, torch.ones(2, 4, device=DEVICE)).shape == x.shape
    load = x, scale, shift, "relu"
    assert stage_output.forward(*load, None).shape == x.shape
    grad_x, affine = stage_output.backward(x, *load)
    assert grad_x.shape == x.shape
    assert not affine.any()
    assert stage_gate.pool(*load).shape == (0, 4)
    assert not stage_gate.squeeze_backward(None, None, x.sum((2, 3)), *load)[1].any()


def test_64_bit_offsets_give_the_same(monkeypatch):
    x, grad, opened = integers(2, 24, 5, 5), integers(2, 24, 5, 5), integers(2, 24)
    load = x, integers(24), integers(24), "relu"

    def run() -> list[Tensor]:
        return [
            stage_norm.sums(x), stage_norm.corrected(grad, x, integers(2, 24) * 0 + 1), stage_output.forward(*load, x),
            *stage_output.backward(grad, *load), stage_gate.pool(*load), stage_gate.gate(*load, opened),
            stage_gate.gate_gradient(grad, *load), *stage_gate.squeeze_backward(grad, opened, opened, *load),
        ]  # fmt: skip

    builds = "channel_sums", "corrected", "output", "output_gradient", "image_sums", "gated", "squeeze_gradient"
    narrow = run()
    for name in builds:
        getattr(stage_launch, name).cache_clear()
    monkeypatch.setattr(TensorProblem, "wide", property(lambda self: True))
    other = run()
    for name in builds:
        getattr(stage_launch, name).cache_clear()
    assert all(torch.equal(one, two) for one, two in zip(narrow, other, strict=True))


def test_64_bits_from_2_31_elements_on():
    problem = TensorProblem(1, 4096 * 4096, 64)
    assert not problem.wide
    assert replace(problem, images=2).wide
