"""Squeeze and excite, and drop path, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dwsep
from tests.nn.written_out import conv


@pytest.mark.parametrize("gate, function", [("sigmoid", torch.sigmoid), ("hardsigmoid", F.hardsigmoid)])
def test_squeeze_excite_written_out(gate, function):
    layer = dwsep.nn.SqueezeExcite(8, 3, activation="silu", gate=gate)
    x = torch.randn(2, 8, 5, 6)
    hidden = F.silu(conv(layer.reduce, x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(layer(x), x * function(conv(layer.expand, hidden)), rtol=1e-5, atol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2, 2)
    out = dwsep.nn.DropPath(0.25)(x)
    values = out.flatten(1)
    assert (values == values[:, :1]).all()
    assert values[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert dwsep.nn.DropPath(0.25).eval()(x) is x


@pytest.mark.parametrize("make, message", [
    (lambda n: n.SqueezeExcite(4, 0), "squeeze_channels must be between 1"),
    (lambda n: n.SqueezeExcite(4, 2, gate="tanh"), "gate: unknown name 'tanh'; valid names are 'sigmoid'"),
    (lambda n: n.DropPath(-0.1), "probability must be at least 0 and below 1, got -0.1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
