"""The pointwise stage's Triton kernels against the reference: on the GPU where there is one, else interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.activations import NAMES
from tests.problems import exact, last

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import pointwise, pointwise_launch
from dwsep.kernels.triton.pointwise_configs import PointwiseBlocks
from dwsep.kernels.triton.pointwise_launch import PointwiseProblem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Small tiles in few chunks, so that small tensors have several of each.
SMALL = PointwiseBlocks(16, 16, 16, 4, 2, 3)


@pytest.fixture(autouse=True)
def _without_tf32(monkeypatch):
    monkeypatch.setattr(pointwise, "_precision", lambda x: "ieee")


@dataclass
class Case:
    """A stage's tensors: x, scale, shift, weight, bias, grad, correction."""

    x: Tensor
    scale: Tensor | None
    shift: Tensor | None
    activation: str
    weight: Tensor
    bias: Tensor | None
    grad: Tensor
    correction: Tensor | None

    def forward(self, **options) -> tuple[Tensor, Tensor]:
        """What the kernels give."""
        return pointwise.forward(self.x, self.scale, self.shift, self.activation, self.weight, self.bias, **options)

    def backward(self, y: Tensor, mask=(True, True), **options) -> tuple[Tensor | None, ...]:
        """Likewise."""
        return pointwise.backward(
            self.grad, y, self.correction, self.x, self.scale, self.shift, self.activation, self.weight,
            self.bias is not None, mask, **options,
        )  # fmt: skip

    def truth(self, y: Tensor, mask=(True, True)) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The reference's output and gradients in float64, those for an output ``y``."""
        given = self.x, self.scale, self.shift, self.weight, self.bias, self.grad, self.correction, y
        x, scale, shift, weight, bias, grad, correction, y = (t if t is None else t.double() for t in given)
        expected, _ = stage_reference.stage(x, scale, shift, self.activation, weight, bias)
        return expected, stage_reference.stage_backward(
            grad, y, correction, x, scale, shift, self.activation, weight, bias is not None, (), mask
        )


def integer_case(
    channels: int,
    outputs: int,
    dtype: torch.dtype,
    *,
    size: tuple[int, ...] = (2, 7, 5),
    affine: bool = True,
    bias: bool = True,
    corrected: bool = True,
    activation: str = "relu",
) -> Case:
    """Integers so small that every type holds the operands and float32 the sums."""

    def draw(*shape: int, low: int = -1, of: torch.dtype = dtype) -> Tensor:
        return torch.randint(low, 2, shape, device=DEVICE).to(of)

    batch, *spatial = size
    vector = {"of": torch.float32}
    return Case(
        last(draw(batch, channels, *spatial)),
        draw(channels, low=0, **vector) + 1 if affine else None,
        draw(channels, **vector) if affine else None,
        activation,
        draw(outputs, channels, *(1,) * len(spatial)),
        draw(outputs) if bias else None,
        last(draw(batch, outputs, *spatial)),
        draw(2, outputs, **vector) if corrected else None,
    )


def normal_case(channels: int, outputs: int, activation: str, dtype: torch.dtype = torch.float32) -> Case:
    """Normal numbers."""

    def draw(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(of)

    vector = {"of": torch.float32}
    return Case(
        last(draw(2, channels, 6, 5)), draw(channels, **vector), draw(channels, **vector), activation,
        draw(outputs, channels, 1, 1), draw(outputs), last(draw(2, outputs, 6, 5)), draw(2, outputs, **vector) / 4,
    )  # fmt: skip


def same(got: Tensor, want: Tensor) -> bool:
    """Whether ``got`` is the float64 ``want`` in its own type, rounded once; Triton's interpreter cuts bfloat16 off."""
    if got.dtype == torch.bfloat16 and DEVICE == "cpu":
        return torch.equal(got.float(), (want.float().view(torch.int32) & -0x10000).view(torch.float32))
    return torch.equal(got, want) if got.dtype == torch.float64 else exact(got, want)


def check_exact(case: Case, blocks=None, both_blocks=None) -> None:
    """Output, sums and gradients bit for bit, all in one pass and in two."""
    y, sums = case.forward(blocks=blocks)
    assert y.movedim(1, -1).is_contiguous()
    expected, gradients = case.truth(y)
    assert same(y, expected)
    assert torch.equal(sums, stage_reference.sums_of(y))
    for together in (True, False):
        chosen = both_blocks if together else blocks
        found = case.backward(y, together=together, blocks=chosen, weight_blocks=blocks)
        for name, got, want in zip(("x", "affine", "weight", "bias"), found, gradients, strict=True):
            assert (got is None) == (want is None), name
            if got is not None and want is not None:
                assert same(got, want), (name, together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels, outputs", [(16, 24), (3, 5), (24, 144)])
def test_small_integers_are_exact(channels, outputs, dtype):
    check_exact(integer_case(channels, outputs, dtype))


@pytest.mark.parametrize("channels, outputs, dtype", [(40, 16, DTYPES[2]), (96, 33, DTYPES[1]), (130, 20, DTYPES[0])])
def test_products_of_several_steps_are_exact(channels, outputs, dtype):
    check_exact(integer_case(channels, outputs, dtype))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_what_may_be_left_out(affine, bias, corrected):
    for activation in ("none", "relu6"):
        case = integer_case(20, 24, torch.float32, affine=affine, bias=bias, corrected=corrected, activation=activation)
        check_exact(case)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 16), (1, 19, 13), (5, 4, 4)])
def test_tiles_and_chunks_are_exact(size):
    check_exact(integer_case(24, 40, torch.float32, size=size), SMALL, PointwiseBlocks(16, 32, 64, 4, 2, 3))


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_asked_for(mask):
    case = integer_case(16, 24, torch.float32)
    y, _ = case.forward()
    found = case.backward(y, mask)
    assert [gradient is not None for gradient in found] == [mask[0], mask[0], mask[1], mask[1]]
    for got, want in zip(found, case.truth(y)[1], strict=True):
        assert got is None or torch.equal(got.double(), want)


@pytest.mark.parametrize("activation", ["none", *NAMES])
@pytest.mark.parametrize("channels, outputs", [(24, 40), (70, 16)])
def test_float32_errors_are_within_their_bounds(activation, channels, outputs):
    case = normal_case(channels, outputs, activation)
    assert case.scale is not None
    assert case.shift is not None
    assert case.bias is not None
    assert case.correction is not None
    y, sums = case.forward()
    expected, gradients = case.truth(y)
    unit, pixels = 2.0**-24, y.numel() // outputs
    weight = case.weight.abs().double().flatten(1)
    z = (case.x * case.scale.view(-1, 1, 1)).abs().double() + case.shift.view(-1, 1, 1).abs()
    slope, offset = case.correction.abs().double().view(2, outputs, 1, 1)
    dy = case.grad.abs().double() + slope * y.abs() + offset
    grad_z = torch.einsum("nkhw,kc->nchw", dy, weight)
    magnitudes = (
        grad_z * case.scale.abs().view(-1, 1, 1),
        torch.stack([(grad_z * case.x.abs()).sum((0, 2, 3)), grad_z.sum((0, 2, 3))]),
        torch.einsum("nkhw,nchw->kc", dy, z)[:, :, None, None],
        dy.sum((0, 2, 3)),
    )
    # The activations' derivatives are up to 1.13, and they and their values have a few roundings of their own.
    bound = (channels + 20) * unit * (torch.einsum("nchw,kc->nkhw", z, weight) + case.bias.abs().view(-1, 1, 1))
    assert ((y.double() - expected).abs() <= bound).all()
    torch.testing.assert_close(sums, stage_reference.sums_of(y), rtol=1e-6, atol=1e-4)
    for together in (True, False):
        found = case.backward(y, together=together)
        terms = outputs, outputs + pixels, pixels, pixels
        for got, want, magnitude, count in zip(found, gradients, magnitudes, terms, strict=True):
            assert got is not None
            assert ((got.double() - want).abs() <= 1.2 * (count + 40) * unit * magnitude).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_operands_and_results(dtype):
    case = normal_case(24, 40, "silu", dtype)
    y, _ = case.forward()
    expected, gradients = case.truth(y)
    unit = torch.finfo(dtype).eps * (2 if DEVICE == "cpu" else 1)  # see same()
    for got, want in zip((y, *case.backward(y)), (expected, *gradients), strict=True):
        assert got is not None
        assert (got.double() - want).norm() <= unit * want.norm()


def test_parameters_of_float32_with_inputs_of_bfloat16():
    case = integer_case(24, 40, torch.bfloat16)
    case.weight, case.bias = case.weight.float(), torch.ones(40, device=DEVICE)
    check_exact(case)
    y, _ = case.forward()
    assert y.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in case.backward(y)] == [
        torch.bfloat16, torch.float64, torch.float32, torch.float32,
    ]  # fmt: skip


def test_tf32_rounds_operands_to_nearest(monkeypatch):
    monkeypatch.setattr(pointwise, "_precision", lambda x: "tf32")
    case = normal_case(24, 40, "none")
    case.scale = case.shift = case.bias = None

    def rounded(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)

    case.x[0, 1, 1, 1] = float("nan")
    y, _ = case.forward()
    case.x, case.weight = last(torch.where(case.x.isnan(), case.x, rounded(case.x))), rounded(case.weight)
    expected, _ = case.truth(y)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_variance_much_smaller_than_the_mean():
    case = normal_case(16, 24, "none")
    case.bias = torch.full((24,), 3e3, device=DEVICE)
    for blocks in (None, SMALL):
        y, sums = case.forward(blocks=blocks)
        count = y.numel() // 24
        var = sums[1] / count - (sums[0] / count).square()
        expected = y.double().var((0, 2, 3), correction=0)
        # Plain squares in float32 would be wrong by 2^-24 of the mean's square, a twentieth of the variance.
        torch.testing.assert_close(var, expected, rtol=1e-5, atol=0)


def test_empty_batch():
    case = integer_case(16, 24, torch.float32, size=(0, 4, 4))
    y, sums = case.forward()
    assert y.shape == (0, 24, 4, 4)
    assert not sums.any()
    grad_x, *rest = case.backward(y)
    assert grad_x.shape == case.x.shape
    assert not any(gradient.any() for gradient in rest)


def test_any_strides_are_taken():
    case = integer_case(16, 24, torch.float32)
    case.x, case.grad = case.x.contiguous(), case.grad.contiguous()
    case.weight = torch.cat([case.weight, case.weight], 1)[:, ::2]
    check_exact(case)


def test_nan_comes_through():
    case = normal_case(16, 24, "relu")
    case.x[0, 3, 2, 2] = float("nan")
    y, sums = case.forward()
    assert y[0, :, 2, 2].isnan().all()
    assert y.isnan().sum() == 24
    assert sums.isnan().all()


def test_64_bit_offsets_give_the_same(monkeypatch):
    case = integer_case(24, 40, torch.float32)
    pointwise_launch.forward.cache_clear()
    narrow = [*case.forward(), *case.backward(case.grad), *case.backward(case.grad, together=False)]
    builds = [
        getattr(pointwise_launch, name) for name in ("forward", "input_gradient", "weight_gradient", "both_gradients")
    ]
    for build in builds:
        build.cache_clear()
    monkeypatch.setattr(PointwiseProblem, "wide", property(lambda self: True))
    wide = [*case.forward(), *case.backward(case.grad), *case.backward(case.grad, together=False)]
    for build in builds:
        build.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))


def test_bits_repeat():
    case = normal_case(24, 40, "gelu")
    y, sums = case.forward(blocks=SMALL)
    found = case.backward(y)
    for _ in range(20 if DEVICE == "cuda" else 1):
        again = case.forward(blocks=SMALL)
        assert torch.equal(again[0], y)
        assert torch.equal(again[1], sums)
        assert all(torch.equal(one, other) for one, other in zip(found, case.backward(y), strict=True))
