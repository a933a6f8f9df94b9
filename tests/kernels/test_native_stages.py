"""The native stages against the float64 reference: bit for bit on small integers, on every instruction set."""

from __future__ import annotations

import random

import pytest
import torch

import dwsep
from dwsep.kernels import stage_reference
from tests import isas
from tests.problems import integers, last

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
NAMES = ("x", "scale and shift", "weight", "bias")


def _double(arguments):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]


def _equal(got: torch.Tensor, wanted: torch.Tensor | None, what: str) -> None:
    if wanted is None:
        assert got.numel() == 0, what
        return
    assert got.shape == wanted.shape, what
    assert torch.equal(got.double(), wanted.double()), what


def check(op: str, x, weight, geometry, activation: str, *, affine: bool, bias: bool, corrected: bool, mask) -> None:
    """One problem, forward and backward; every number in it and every sum is an integer that float32 holds."""
    what = f"{op} {tuple(x.shape)} {tuple(weight.shape)} {geometry} {activation} {affine=} {bias=} {corrected=} {mask}"
    channels, outputs = x.shape[1], weight.shape[0]
    scale, shift = (integers(channels), integers(channels)) if affine else (None, None)
    arguments = (x, scale, shift, activation, weight, integers(outputs) if bias else None)
    y, sums = getattr(ops, op)(*arguments, *geometry)
    wanted_y, wanted_sums = stage_reference.stage(*_double(arguments), geometry)
    _equal(y, wanted_y, f"output of {what}")
    _equal(sums, wanted_sums, f"sums of {what}")
    assert y.numel() <= 1 or y.movedim(1, -1).is_contiguous()

    grad = last(integers(*y.shape, top=1))
    # Values that stay small: the gradient's products are summed over all pixels.
    raw = last(integers(*y.shape, top=1))
    correction = integers(2, outputs, top=1) if corrected else None
    arguments = (grad, raw, correction, x, scale, shift, activation, weight, bias)
    found = getattr(ops, f"{op}_backward")(*arguments, *geometry, mask)
    wanted = stage_reference.stage_backward(*_double(arguments), geometry, mask)
    for name, got, expected in zip(NAMES, found, wanted, strict=True):
        _equal(got, expected, f"gradient of {name}, {what}")


def _problem(rng: random.Random):
    axes = rng.choice((1, 2, 2, 2, 3))
    kernel = [rng.choice((1, 2, 3, 3, 4, 5, 7)) for _ in range(axes)]
    stride, dilation = [rng.choice((1, 1, 2, 3)) for _ in kernel], [rng.choice((1, 1, 2, 5)) for _ in kernel]
    padding = [rng.choice((-1, 0, 1, (k - 1) * d // 2, 4)) for k, d in zip(kernel, dilation, strict=True) for _ in "lh"]
    least = [
        max(3, d * (k - 1) + 1 - low - high)
        for k, d, low, high in zip(kernel, dilation, padding[0::2], padding[1::2], strict=True)
    ]
    largest = {1: 90, 2: 19, 3: 5}[axes]
    spatial = [rng.randint(low, max(low, largest)) for low in least]
    return kernel, stride, padding, dilation, spatial


def check_many(count: int, seed: int) -> None:
    """Drawn problems of both operators, on the instruction set in use."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for index in range(count):
        batch, channels = rng.choice((1, 1, 2, 3)), rng.choice((1, 3, 7, 8, 16, 17, 24, 32, 40, 72, 150))
        activation = rng.choice(("none", "relu", "relu6"))
        options = {
            "affine": rng.random() < 0.7,
            "bias": rng.random() < 0.3,
            "corrected": rng.random() < 0.7,
            "mask": rng.choice(([True, True], [True, True], [True, False], [False, True])),
        }
        kernel, stride, padding, dilation, spatial = _problem(rng)
        x = last(integers(batch, channels, *spatial))
        ones = (1,) * len(spatial)
        if index % 2 == 0:
            weight = integers(rng.choice((1, 5, 8, 16, 24, 33, 48, 100)), channels, *ones)
            check("pointwise_stage", x, weight, (), activation, **options)
        else:
            weight = integers(channels, 1, *kernel)
            check("depthwise_stage", x, weight, (stride, padding, dilation), activation, **options)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_drawn_problems_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_stages as t; t.check_many(400, seed=3)")


def check_batches_of_rows() -> None:
    """Depthwise problems around the numbers of rows and channel blocks that the way back takes together."""
    rng = random.Random(5)
    torch.manual_seed(5)
    for width in (4, 7, 14, 15, 30, 57, 130):
        for kernel, stride, dilation in ((3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (7, 1, 1), (3, 1, 2), (2, 3, 1)):
            pad, height = (kernel - 1) * dilation // 2, rng.choice((3, 5, 8, 17)) + (kernel - 1) * (dilation - 1)
            channels = rng.choice((16, 40, 64, 80, 150))
            options = {"affine": rng.random() < 0.7, "bias": False, "corrected": rng.random() < 0.7}
            weight = integers(channels, 1, kernel, kernel, top=1)
            x = last(integers(rng.choice((1, 3)), channels, max(height, kernel), max(width, kernel)))
            geometry = ([stride] * 2, [pad] * 4, [dilation] * 2)
            for activation in ("none", "relu6"):
                check("depthwise_stage", x, weight, geometry, activation, mask=[True, True], **options)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_batches_of_rows_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_stages as t; t.check_batches_of_rows()")


def check_few_pixels() -> None:
    """As many pixels as there are images behind a pooling, around the numbers that are computed together."""
    torch.manual_seed(4)
    for pixels in (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17):
        for channels, outputs in ((1, 1), (5, 17), (33, 8), (48, 70), (150, 49)):
            options = {"affine": channels != 33, "bias": True, "corrected": channels > 8, "mask": [True, True]}
            weight = integers(outputs, channels, 1, 1)
            check("pointwise_stage", last(integers(pixels, channels, 1, 1)), weight, (), "relu6", **options)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_few_pixels_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_stages as t; t.check_few_pixels()")


def check_large_weights() -> None:
    """Weights whose gradient's sums outgrow half of a second cache of 2 MB, of the pixels of a few small images."""
    torch.manual_seed(6)
    for channels, outputs, size in ((560, 500, (5, 7)), (500, 560, (3, 3)), (1050, 260, (9, 11))):
        for mask in ([True, True], [True, False], [False, True]):
            options = {"affine": outputs != 560, "bias": outputs == 560, "corrected": outputs == 500, "mask": mask}
            weight = integers(outputs, channels, 1, 1, top=1)
            check("pointwise_stage", last(integers(2, channels, *size)), weight, (), "relu6", **options)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_large_weights_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_stages as t; t.check_large_weights()")


def test_large_problems_exact_on_integers():
    """Sizes at which tensors are cut into tiles, bands and groups of channels, and stored past the caches."""
    torch.manual_seed(1)
    options = {"affine": True, "bias": False, "corrected": True, "mask": [True, True]}
    x = last(integers(2, 96, 112, 112))
    check("pointwise_stage", x, integers(40, 96, 1, 1, top=1), (), "relu6", **options)
    for stride, kernel, dilation in ((1, 3, 1), (2, 3, 1), (1, 5, 2)):
        pad = (kernel - 1) * dilation // 2
        geometry = ([stride] * 2, [pad] * 4, [dilation] * 2)
        check("depthwise_stage", x, integers(96, 1, kernel, kernel, top=1), geometry, "relu", **options)
    # Narrow images of whole cache lines, whose rows' sums go on over the next.
    for images, channels, size in ((512, 64, 3), (512, 48, 4), (200, 80, 7)):
        x = last(integers(images, channels, size, size))
        geometry = ([1, 1], [1] * 4, [1, 1])
        check("depthwise_stage", x, integers(channels, 1, 3, 3, top=1), geometry, "relu", **options)
    # Rows of one block of channels alone outgrow the cache.
    wide = last(integers(1, 20, 9, 9000))
    check("depthwise_stage", wide, integers(20, 1, 9, 3, top=1), ([1, 1], [4, 4, 1, 1], [1, 1]), "relu", **options)
    few = last(integers(1, 640, 3, 3))
    check("pointwise_stage", few, integers(700, 640, 1, 1, top=1), (), "relu", **options)
    # A gradient of the weight that is stored past the caches.
    check("pointwise_stage", last(integers(8, 1280, 1, 1)), integers(1024, 1280, 1, 1, top=1), (), "relu", **options)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
def test_floats_within_rounding(activation):
    torch.manual_seed(2)
    x, scale, shift = last(torch.randn(2, 40, 12, 13)), torch.randn(40), torch.randn(40)
    for op, weight, geometry in (
        ("pointwise_stage", torch.randn(24, 40, 1, 1), ()),
        ("depthwise_stage", torch.randn(40, 1, 5, 5), ([1, 1], [2] * 4, [1, 1])),
    ):
        arguments = (x, scale, shift, activation, weight, None)
        y, sums = getattr(ops, op)(*arguments, *geometry)
        wanted, wanted_sums = stage_reference.stage(*_double(arguments), geometry)
        # Sums of at most 40 products of numbers around 1, and an activation within 4e-7 of its argument.
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(sums[1], wanted_sums[1], rtol=1e-5, atol=1e-3)
        # Without a bias both of the depthwise gradients come from one reading.
        for bias in (True, False):
            arguments = (
                last(torch.randn_like(y)),
                y,
                torch.randn(2, y.shape[1]),
                x,
                scale,
                shift,
                activation,
                weight,
                bias,
            )
            found = getattr(ops, f"{op}_backward")(*arguments, *geometry, [True, True])
            expected = stage_reference.stage_backward(*_double(arguments), geometry, [True, True])
            for name, got, value in zip(NAMES, found, expected, strict=True):
                if value is None:
                    continue
                distance = (got.double() - value).norm() / value.norm()
                assert distance < 2e-6, f"gradient of {name}, {op}, {bias=}: {distance:.1e}"


@pytest.mark.parametrize("op", ["pointwise_stage", "depthwise_stage", "stage_sums"])
def test_variances_far_below_the_mean(op):
    torch.manual_seed(3)
    x = last(torch.randn(3, 40, 12, 13) + 1000)
    ones = torch.ones(40)
    if op == "stage_sums":
        y, sums = x, ops.stage_sums(x)
    elif op == "depthwise_stage":
        y, sums = ops.depthwise_stage(x, None, None, "none", ones.view(40, 1, 1, 1), None, [1, 1], [0] * 4, [1, 1])
    else:
        y, sums = ops.pointwise_stage(x, None, None, "none", torch.eye(40).view(40, 40, 1, 1), None)
    assert torch.equal(y, x)
    *_, invstd = ops.stage_statistics(sums, 3 * 12 * 13, ones, ones, 0.0, 0.1, None, None)
    wanted = x.double().var((0, 2, 3), unbiased=False).rsqrt()
    torch.testing.assert_close(invstd.double(), wanted, rtol=1e-6, atol=0)


def test_nothing_to_do():
    scale, shift = torch.ones(5), torch.zeros(5)
    empty = torch.empty(0, 5, 4, 4).to(memory_format=torch.channels_last)
    y, sums = ops.pointwise_stage(empty, scale, shift, "relu", torch.ones(3, 5, 1, 1), None)
    assert y.shape == (0, 3, 4, 4)
    assert torch.equal(sums, torch.zeros(2, 3, dtype=torch.float64))
    found = ops.pointwise_stage_backward(
        y, y, torch.zeros(2, 3), empty, scale, shift, "relu", torch.ones(3, 5, 1, 1), True, [True, True]
    )
    assert all(bool((grad == 0).all()) for grad in found)
    geometry = ([1, 1], [1] * 4, [1, 1])
    y, sums = ops.depthwise_stage(empty, scale, shift, "relu", torch.ones(5, 1, 3, 3), None, *geometry)
    assert y.shape == (0, 5, 4, 4)
    assert not sums.any()
    found = ops.depthwise_stage_backward(
        y, y, torch.zeros(2, 5), empty, scale, shift, "relu", torch.ones(5, 1, 3, 3), True, *geometry, [True, True]
    )
    assert all(bool((grad == 0).all()) for grad in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(1, 4, 3, 3, dtype=torch.float64)}, "x must be float32"),
        ({"x": torch.ones(4, 3)}, "3 to 5 dimensions"),
        ({"scale": torch.ones(5)}, r"scale must have shape \(4\)"),
        ({"shift": None}, "given together"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"weight": torch.ones(2, 5, 1, 1)}, "pointwise weight must have shape"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.ones(1, 4, 3, 3),
        "scale": torch.ones(4),
        "shift": torch.ones(4),
        "activation": "relu",
        "weight": torch.ones(2, 4, 1, 1),
        "bias": None,
    }
    with pytest.raises(RuntimeError, match=message):
        ops.pointwise_stage(**{**arguments, **change})
