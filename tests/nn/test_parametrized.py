"""Weight norm, spectral norm and pruning on the layers: same results and gradients as on torch's convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import dwsep

PARAMETRISATIONS = {"weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm}


def pair(axes, multiplier, **options):
    """A separable layer and torch's two convolutions with the same weights."""
    layer = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")(6, 10, 3, depth_multiplier=multiplier, **options)
    convolution = getattr(nn, f"Conv{axes}d")
    depthwise = convolution(6, 6 * multiplier, 3, padding=1, groups=6)
    pointwise = convolution(6 * multiplier, 10, 1)
    depthwise.load_state_dict(layer.depthwise.state_dict())
    pointwise.load_state_dict(layer.pointwise.state_dict())
    return layer, nn.Sequential(depthwise, pointwise)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_parametrised_factors_match_torch(axes, name, multiplier):
    layer, reference = pair(axes, multiplier)
    for module in (layer.depthwise, layer.pointwise, *reference):
        torch.manual_seed(3)  # spectral norm draws its vectors
        PARAMETRISATIONS[name](module)
    x = torch.randn(2, 6, *(5, 6, 7)[:axes])
    for training in (True, False):
        layer.train(training)
        reference.train(training)
        out, expected = layer(x), reference(x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        expected_grads = torch.autograd.grad(expected.square().sum(), list(reference.parameters()))
        for a, e in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), reference(x), rtol=1e-5, atol=1e-5)
    for module in (layer.depthwise, layer.pointwise):
        parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_parametrised_layers_copy_and_load(name):
    layer, _ = pair(2, 1, norm="batch")
    PARAMETRISATIONS[name](layer.depthwise)
    layer.eval()
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(1, 6, 5, 5)
    assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_transposed_and_blueprint_layers(name):
    x = torch.randn(1, 6, 5, 5)
    for layer in (dwsep.nn.DepthwiseConvTranspose2d(6, 4, 2, 1), dwsep.nn.BlueprintSeparableConv2d(6, 8)):
        inner = layer if isinstance(layer, dwsep.nn.DepthwiseConvTranspose2d) else layer.depthwise
        PARAMETRISATIONS[name](inner)
        layer.eval()
        before = layer(x)
        parametrize.remove_parametrizations(inner, "weight")
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)


def test_pruning_masks_a_factor():
    layer, reference = pair(2, 1)
    for module in (layer.depthwise, reference[0]):
        prune.l1_unstructured(module, "weight", amount=0.5)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-5, atol=1e-5)
