"""Packed pointwise convolutions against torch's: bit for bit on small integers, on every instruction set."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import dwsep
from tests import isas
from tests.problems import integers, last

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep


def check_many(count: int, seed: int) -> None:
    """Drawn problems, on the instruction set in use."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for index in range(count):
        channels, outputs = (rng.choice((1, 5, 8, 16, 24, 31, 40, 96, 300)) for _ in "io")
        spatial = rng.choice(((1, 1), (7, 7), (5, 13), (33, 2), (28, 28)))
        x, weight = integers(rng.choice((1, 2, 3)), channels, *spatial, top=3), integers(outputs, channels, 1, 1, top=3)
        x = last(x) if index % 4 else x
        bias = integers(outputs, top=3) if index % 3 else None
        name, activation = rng.choice((("none", lambda x: x), ("relu", F.relu), ("relu6", F.relu6)))
        residual = last(integers(x.shape[0], outputs, *spatial, top=3)) if index % 2 else None
        wanted = activation(F.conv2d(x.double(), weight.double(), None if bias is None else bias.double()))
        wanted = wanted if residual is None else wanted + residual
        for bfloat16 in (False, True):  # which holds these integers
            packed = ops.pack_pointwise_weights(weight, bias, bfloat16)
            got = ops.pointwise_conv_packed(x, packed, outputs, name, residual, bfloat16)
            assert torch.equal(got.double(), wanted), f"{tuple(x.shape)} to {outputs}, {name}, {bias is None=}"


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_drawn_problems_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_pointwise as t; t.check_many(200, seed=4)")


def test_opcheck():
    x, weight, bias = last(torch.randn(2, 20, 6, 5)), torch.randn(40, 20, 1, 1), torch.randn(40)
    opcheck(ops.pack_pointwise_weights, (weight, bias))
    packed = ops.pack_pointwise_weights(weight, bias)
    assert torch.isfinite(packed).all()
    opcheck(ops.pointwise_conv_packed, (x, packed, 40, "gelu", last(torch.randn(2, 40, 6, 5))))
    opcheck(ops.pointwise_conv_packed, (x, packed, 40, "none", None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(1, 20, 2, 2)}, "packed must be what pack_pointwise_weights returned"),
        ({"out_channels": 0}, "out_channels must be at least 1"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"residual": torch.ones(1, 3, 2, 3)}, "residual must have the shape"),
        ({"x": torch.ones(1, 4, 2, 2).bfloat16()}, "x must be float32"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.ones(1, 4, 2, 2),
        "packed": ops.pack_pointwise_weights(torch.ones(3, 4, 1, 1), None),
        "out_channels": 3,
        "activation": "relu",
        "residual": None,
    }
    with pytest.raises(RuntimeError, match=message):
        ops.pointwise_conv_packed(**{**arguments, **change})
