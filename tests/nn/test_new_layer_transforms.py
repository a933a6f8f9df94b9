"""opcheck, torch.compile, torch.export and vmap on every layer and block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import dwsep

# torch's own check reads .grad of non-leaf tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

N = dwsep.nn
IMAGE, SIGNAL, VOLUME = (2, 8, 9, 10), (2, 8, 20), (2, 8, 4, 5, 6)
LAYERS = {
    "LazyDepthwiseConv1d": (lambda: N.LazyDepthwiseConv1d(3), SIGNAL),
    "LazyDepthwiseConv2d": (lambda: N.LazyDepthwiseConv2d(3), IMAGE),
    "LazyDepthwiseConv3d": (lambda: N.LazyDepthwiseConv3d(3), VOLUME),
    "LazyDepthwiseSeparableConv1d": (lambda: N.LazyDepthwiseSeparableConv1d(6, 3, activation="silu"), SIGNAL),
    "LazyDepthwiseSeparableConv2d": (lambda: N.LazyDepthwiseSeparableConv2d(6, 3, norm="batch"), IMAGE),
    "LazyDepthwiseSeparableConv3d": (lambda: N.LazyDepthwiseSeparableConv3d(6, 3), VOLUME),
    "LazyDepthwiseConvTranspose1d": (lambda: N.LazyDepthwiseConvTranspose1d(4, 2, 1), SIGNAL),
    "LazyDepthwiseConvTranspose2d": (lambda: N.LazyDepthwiseConvTranspose2d(3, 2, activation="relu"), IMAGE),
    "LazyDepthwiseConvTranspose3d": (lambda: N.LazyDepthwiseConvTranspose3d(2, 2), VOLUME),
    "LazyDepthwiseSeparableConvTranspose1d": (lambda: N.LazyDepthwiseSeparableConvTranspose1d(6, 4, 2, 1), SIGNAL),
    "LazyDepthwiseSeparableConvTranspose2d": (
        lambda: N.LazyDepthwiseSeparableConvTranspose2d(6, 3, 2, norm="batch"), IMAGE
    ),
    "LazyDepthwiseSeparableConvTranspose3d": (lambda: N.LazyDepthwiseSeparableConvTranspose3d(6, 2, 2), VOLUME),
    "DepthwiseConvTranspose1d": (lambda: N.DepthwiseConvTranspose1d(8, 4, 2, 1), SIGNAL),
    "DepthwiseConvTranspose2d": (lambda: N.DepthwiseConvTranspose2d(8, 4, 2, 1, activation="relu"), IMAGE),
    "DepthwiseConvTranspose3d": (lambda: N.DepthwiseConvTranspose3d(8, 2, 2), VOLUME),
    "DepthwiseSeparableConvTranspose1d": (lambda: N.DepthwiseSeparableConvTranspose1d(8, 6, 4, 2, 1), SIGNAL),
    "DepthwiseSeparableConvTranspose2d": (
        lambda: N.DepthwiseSeparableConvTranspose2d(8, 6, 3, 2, 1, 1, norm="batch", activation="relu"), IMAGE
    ),
    "DepthwiseSeparableConvTranspose3d": (lambda: N.DepthwiseSeparableConvTranspose3d(8, 6, 2, 2), VOLUME),
    "BlueprintSeparableConv2d": (
        lambda: N.BlueprintSeparableConv2d(8, 6, variant="S", inner_norm="batch", activation="relu"), IMAGE
    ),
    "LightweightConv1d": (lambda: N.LightweightConv1d(8, 3, 4, "causal"), SIGNAL),
    "SubseparableConv1d": (lambda: N.SubseparableConv1d(8, 8, groups=4, variant="superseparable"), SIGNAL),
    "SubseparableConv2d": (lambda: N.SubseparableConv2d(8, 8, groups=4), IMAGE),
    "SqueezeExcite": (lambda: N.SqueezeExcite(8, 2), IMAGE),
    "DropPath": (lambda: N.DropPath(0.5), IMAGE),
    "InvertedResidual": (lambda: N.InvertedResidual(8, 8, expansion=2, squeeze_channels=4), IMAGE),
    "XceptionBlock": (lambda: N.XceptionBlock(8, 8, stride=2, padding="same_tf"), IMAGE),
    "ConvNeXtBlock": (lambda: N.ConvNeXtBlock(8), IMAGE),
    "SeparableASPP": (lambda: N.SeparableASPP(8, 4, (1, 2)), IMAGE),
    "TemporalBlock": (lambda: N.TemporalBlock(8, 6), SIGNAL),
    "MixConv2d": (lambda: N.MixConv2d(8, (3, 5, 7)), IMAGE),
}  # fmt: skip
OLDER = {"DepthwiseConv1d", "DepthwiseConv2d", "DepthwiseConv3d", "DepthwiseSeparableConv1d",
         "DepthwiseSeparableConv2d", "DepthwiseSeparableConv3d"}  # fmt: skip


def make(name):
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    layer(x)  # a lazy layer becomes what it is
    return layer.eval(), x


def test_every_public_layer_is_tested():
    """The older ones are in test_transforms.py."""
    assert set(LAYERS) | OLDER == {name for name in N.__all__ if isinstance(getattr(N, name), type)}


class _Recorded(TorchDispatchMode):
    """Collects the calls of the package's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dwsep":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LAYERS)
def test_opcheck(name):
    """Every operator that a layer calls, with the arguments it calls it with."""
    layer, x = make(name)
    mode = _Recorded()
    with torch.no_grad(), mode:
        layer(x)
        layer.train()(x)
    native = dwsep.ops.native_status().loaded
    composed = {"SubseparableConv2d", "SqueezeExcite", "DropPath"}  # made of torch's operators alone
    assert bool(mode.calls) == (native and name not in composed)
    for operator, args, kwargs in mode.calls:
        opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name):
    torch.compiler.reset()
    layer, x = make(name)
    x.requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = [(out := function(x), torch.autograd.grad(out.square().sum(), x)) for function in (layer, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_export(name):
    layer, x = make(name)
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap(name):
    layer, x = make(name)
    xs = torch.stack([x, x + 1, 2 * x])
    torch.testing.assert_close(vmap(layer)(xs), torch.stack([layer(one) for one in xs]), rtol=1e-5, atol=1e-5)
    if not list(layer.parameters()):
        return
    layers = [copy.deepcopy(layer) for _ in range(2)]
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.mul_(1.5)
    out = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(*stack_module_state(layers))
    torch.testing.assert_close(out, torch.stack([one(x) for one in layers]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make_layer", [
    lambda: N.DepthwiseConv1d(8, 3, padding="causal", dilation=2, activation="silu"),
    lambda: N.DepthwiseSeparableConv1d(8, 6, 3, padding="causal", norm="batch", inner_activation="relu").eval(),
])  # fmt: skip
def test_step_and_ragged_compile_export_and_vmap(make_layer):
    torch.compiler.reset()
    layer, x = make_layer(), torch.randn(2, 8, 12)
    state = torch.randn(2, 8, layer.history)
    lengths, starts = torch.tensor([12, 5]), torch.tensor([0, 4, 12])

    class Ways(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, state):
            padded = self.layer.forward_ragged(x, lengths=lengths)
            return *self.layer.step(x, state), padded, self.layer.forward_ragged(x[:1], cu_seqlens=starts)

    expected = Ways()(x, state)
    compiled = torch.compile(Ways(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, state), expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(Ways(), (x, state)).module()
    torch.testing.assert_close(exported(x, state), expected, rtol=1e-5, atol=1e-5)
    xs, states = torch.stack([x, 2 * x]), torch.stack([state, -state])
    out, after = vmap(layer.step)(xs, states)
    for index in range(2):
        one, new = layer.step(xs[index], states[index])
        torch.testing.assert_close(out[index], one, rtol=1e-5, atol=1e-5)
        assert torch.equal(after[index], new)
