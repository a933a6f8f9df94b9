"""The native squeeze and excite against the reference: integers exactly, floats within rounding."""

from __future__ import annotations

import math
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
OPERATORS = ("pool", "gate", "gate_gradient", "squeeze_backward")


def _calls(x, grad, scale, shift, activation, gate, grad_means):
    """The arguments of each operator; of the way back also those without a product, and without means."""
    pending = (x, scale, shift, activation)
    yield "pool", pending
    yield "gate", (*pending, gate)
    yield "gate_gradient", (grad, *pending)
    for product, means in ((True, True), (True, False), (False, True)):
        given = (grad, gate) if product else (None, None)
        yield "squeeze_backward", (*given, grad_means if means else None, *pending)


def _both(name, arguments):
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    got, wanted = getattr(ops, f"stage_{name}")(*arguments), getattr(stage_reference, name)(*wide)
    return ((got, wanted),) if isinstance(got, torch.Tensor) else tuple(zip(got, wanted, strict=True))


def check_many(count: int, seed: int) -> None:
    """Drawn problems whose every number is an integer, or a multiple of 1 / pixels with few bits."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        batch, channels = rng.choice((1, 2, 3, 40)), rng.choice((1, 3, 8, 16, 17, 40, 72, 150, 700))
        spatial = rng.choice(((1, 1), (2, 4), (4, 8), (16, 16), (8,), (2, 2, 4)))
        if batch * channels * math.prod(spatial) > 2**18:
            batch = 1
        shape = (batch, channels, *spatial)
        scale, shift = (integers(channels), integers(channels)) if rng.random() < 0.7 else (None, None)
        activation = rng.choice(("none", "relu", "relu6"))
        gate, grad_means = integers(batch, channels), integers(batch, channels)
        for name, arguments in _calls(
            last(integers(*shape)), last(integers(*shape)), scale, shift, activation, gate, grad_means
        ):
            for got, wanted in _both(name, arguments):
                what = f"{name} {shape} {activation} {scale is not None}"
                if wanted is None:
                    assert got.numel() == 0, what
                    continue
                assert got.shape == wanted.shape, what
                assert torch.equal(got.double(), wanted), what


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_drawn_problems_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_gates as t; t.check_many(120, seed=5)")


def _drawn(generator):
    x, grad = (last(torch.randn(3, 72, 19, 23, generator=generator)) for _ in range(2))
    scale, shift = torch.randn(2, 72, generator=generator)
    gate, grad_means = torch.rand(2, 3, 72, generator=generator)
    return x, grad, scale, shift, gate, grad_means


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
def test_floats_within_rounding(activation):
    x, grad, scale, shift, gate, grad_means = _drawn(torch.Generator().manual_seed(3))
    for name, arguments in _calls(x, grad, scale, shift, activation, gate, grad_means):
        for got, wanted in _both(name, arguments):
            distance = (got.double() - wanted).norm() / wanted.norm()
            assert distance < 1e-6, f"{name}: {distance:.1e}"


def test_nothing_to_do():
    empty = last(torch.empty(0, 5, 4, 4))
    assert ops.stage_pool(empty, None, None, "relu").shape == (0, 5)
    assert ops.stage_gate(empty, None, None, "relu", torch.empty(0, 5)).shape == (0, 5, 4, 4)
    _, affine = ops.stage_squeeze_backward(None, None, None, empty, torch.ones(5), torch.ones(5), "relu")
    assert torch.equal(affine, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.ones(2, 4)}, r"gate must have shape \(1, 4\)"),
        ({"gate": torch.ones(1, 4, dtype=torch.float64)}, "gate"),
        ({"gate": None}, "grad and gate must be given together"),
        ({"grad": torch.ones(1, 4, 3, 2)}, "grad must have the shape"),
        ({"grad_mean": torch.ones(4)}, r"grad_mean must have shape \(1, 4\)"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
    ],
)
def test_bad_arguments(change, message):
    x = torch.ones(1, 4, 3, 3)
    arguments = {"grad": x, "gate": torch.ones(1, 4), "grad_mean": None, "x": x, "scale": None, "shift": None}
    with pytest.raises(RuntimeError, match=message):
        ops.stage_squeeze_backward(**{**arguments, "activation": "relu", **change})
