"""``mixed_stage`` against the same convolutions one by one, whose own tests are in test_stages.py."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import dwsep  # noqa: F401  (defines the operators)
from dwsep.kernels import stage_reference
from tests.problems import last

ops = torch.ops.dwsep


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def depthwise(channels, sizes, stride=1, dilation=1):
    """Weights, and their geometry with the padding that keeps the size."""
    reach = [dilation * (size - 1) for size in sizes]
    weights = [draw(c, 1, size, size) for c, size in zip(channels, sizes, strict=True)]
    pads = [side for r in reach for side in (r // 2, r - r // 2) * 2]
    return weights, ([stride] * 2 * len(sizes), pads, [dilation] * 2 * len(sizes))


def pointwise(inputs, outputs):
    """Weights, and no geometry."""
    return [draw(k, c, 1, 1) for c, k in zip(inputs, outputs, strict=True)], ([], [], [])


PROBLEMS = {
    "3x3, 5x5, 7x7": lambda: depthwise((16, 16, 16), (3, 5, 7)),
    "tails": lambda: depthwise((10, 7, 33, 1), (3, 5, 7, 9)),
    "stride": lambda: depthwise((20, 12), (3, 5), stride=2),
    "larger than the image": lambda: depthwise((18, 17), (11, 4), dilation=2),
    "1x1": lambda: pointwise((16, 32), (32, 16)),
    "1x1, tails": lambda: pointwise((5, 21, 2), (18, 3, 40)),
    "alone": lambda: depthwise((20,), (3,)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("problem", ["tails", "1x1, tails"])
def test_opcheck(problem, bias):
    weights, geometry = PROBLEMS[problem]()
    inputs = sum(w.shape[0] if geometry[0] else w.shape[1] for w in weights)
    outputs = sum(w.shape[0] for w in weights)
    x = last(draw(2, inputs, 6, 5))
    for scale, shift, mask in (
        (draw(inputs), draw(inputs), [True, True]),
        (None, None, [True, False]),
        (None, None, [False, True]),
    ):
        arguments = (x, scale, shift, "relu6", weights, draw(outputs) if bias else None, *geometry)
        opcheck(ops.mixed_stage, arguments)
        y, _ = ops.mixed_stage(*arguments)
        correction = None if scale is None else draw(2, outputs)
        grad = last(torch.randn_like(y))
        opcheck(
            ops.mixed_stage_backward,
            (grad, y, correction, x, scale, shift, "relu6", weights, bias, *geometry, mask),
        )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [(7, 9), (40, 33)])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_equals_the_reference(problem, size, affine):
    torch.manual_seed(len(problem))
    weights, geometry = PROBLEMS[problem]()
    parts = len(weights)
    inputs = sum(w.shape[0] if geometry[0] else w.shape[1] for w in weights)
    outputs = sum(w.shape[0] for w in weights)
    x, bias = last(draw(2, inputs, *size)), draw(outputs)
    scale, shift = (draw(inputs), draw(inputs)) if affine else (None, None)
    correction = draw(2, outputs)
    y, sums = ops.mixed_stage(x, scale, shift, "silu", weights, bias, *geometry)
    grad = last(torch.randn_like(y))
    found = ops.mixed_stage_backward(
        grad, y, correction, x, scale, shift, "silu", weights, True, *geometry, [True, True]
    )

    def wide(value):
        return None if value is None else value.double()

    each = [tuple(g[i * len(g) // parts : (i + 1) * len(g) // parts] for g in geometry) for i in range(parts)]
    geometries = each if geometry[0] else [()] * parts
    pending = (wide(x), wide(scale), wide(shift), "silu", list(map(wide, weights)))
    expected_y, expected_sums = stage_reference.mixed_stage(*pending, wide(bias), geometries)
    expected = stage_reference.mixed_stage_backward(
        wide(grad), wide(y), wide(correction), *pending, True, geometries, [True, True]
    )
    close(y, expected_y)
    close(sums, expected_sums)
    close(found[0], expected[0])
    assert (expected[1] is None) == (not affine)
    if affine:
        close(found[1], expected[1])
    for got, wanted in zip(found[2], expected[2], strict=True):
        close(got, wanted)
    close(found[3], expected[3])


def close(got, wanted):
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() < 3e-6 * (wanted.norm() + 10)


def test_large_parts_are_stored_past_the_caches_alike():
    weights, geometry = pointwise((16, 16), (64, 32))
    x = last(draw(3, 32, 64, 64))
    y, _ = ops.mixed_stage(x, None, None, "none", weights, None, *geometry)
    for part, weight, out in zip(x.split(16, 1), weights, y.split([64, 32], 1), strict=True):
        close(out, torch.nn.functional.conv2d(part.double(), weight.double()))


@pytest.mark.parametrize(
    ("weights", "geometry", "message"),
    [
        ([draw(4, 1, 3, 3)], ([1, 1], [1] * 4, [1, 1]), "8"),
        ([draw(4, 1, 3, 3), draw(4, 1, 5, 5)], ([1] * 4, [1] * 8, [1] * 4), "size"),
    ],
)
def test_parts_must_fit(weights, geometry, message):
    with pytest.raises(RuntimeError, match=message):
        ops.mixed_stage(last(draw(1, 8, 6, 6)), None, None, "none", weights, None, *geometry)
