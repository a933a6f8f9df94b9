"""torch.compile, torch.export and torch.func through the layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, stack_module_state, vmap

import dwsep

NORMS = [None, "batch"]


def make(norm, **options):
    return dwsep.nn.DepthwiseSeparableConv2d(
        8, 12, 3, 2, norm=norm, inner_norm=norm, inner_activation="relu", activation="silu", **options
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compile_fullgraph(norm, order, memory_format):
    torch.compiler.reset()
    layer = make(norm, order=order)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 9, 9).to(memory_format=memory_format)
    parameters = list(layer.parameters())
    for training in (True, False):
        layer.train(training)
        results = []
        for function in (layer, compiled):  # one after the other: a training step moves the running statistics
            out = function(x)
            results.append((out.detach(), torch.autograd.grad(out.square().sum(), parameters)))
        (expected, expected_grads), (actual, actual_grads) = results
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()
        for a, e in zip(actual_grads, expected_grads):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_compile_fullgraph_in_bfloat16(kernel, stride):
    torch.compiler.reset()
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 6, kernel, stride).bfloat16()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 9, 9, dtype=torch.bfloat16)
    parameters = list(layer.parameters())
    expected, actual = layer(x), compiled(x)
    assert torch.equal(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, e)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


def test_compile_with_inductor_and_dynamic_batch():
    torch.compiler.reset()
    layer = make("batch").eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 5, 3):
            x = torch.randn(batch, 8, 9, 9)
            torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_export(norm, axes):
    layer = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")(4, 6, norm=norm, activation="relu").eval()
    x = torch.randn(2, 4, *(7, 6, 5)[:axes])
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_vmap_over_inputs():
    layer = make(None)
    xs = torch.randn(3, 2, 8, 9, 9)
    torch.testing.assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))
    assert vmap(layer, in_dims=1)(xs).shape == (2, 3, 12, 5, 5)


def test_vmap_over_an_ensemble():
    layers = [make(None) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(2, 8, 9, 9)
    out = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(out, torch.stack([layer(x) for layer in layers]), rtol=1e-5, atol=1e-5)


def test_per_sample_gradients():
    layer = make(None)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    xs = torch.randn(3, 8, 9, 9)

    def loss(p, x):
        return functional_call(layer, p, (x.unsqueeze(0),)).square().sum()

    grads = vmap(grad(loss), in_dims=(None, 0))(parameters, xs)
    for index, x in enumerate(xs):
        layer.zero_grad()
        layer(x.unsqueeze(0)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(grads[name][index], parameter.grad, rtol=1e-4, atol=1e-4)


def test_autocast_through_the_layer():
    layer = make("batch").eval()
    x = torch.randn(1, 8, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(out.float(), layer(x), rtol=3e-2, atol=3e-2)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it, in forward mode
@pytest.mark.parametrize("training", (True, False))
def test_forward_mode_carries_tangents(training):
    layer = make(None).train(training)
    x, tangent = torch.randn(2, 1, 8, 9, 9)
    _, expected = torch.func.jvp(layer._composed, (x,), (tangent,))
    accelerated = torch.nn.Sequential(copy.deepcopy(layer))
    dwsep.accelerate_(accelerated)
    for function in (layer, layer, accelerated):  # the second call, too, which finds the first one's choice
        with torch.set_grad_enabled(training), forward_ad.dual_level():
            found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
        torch.testing.assert_close(found, expected)
        function(x)
