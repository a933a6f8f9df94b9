"""ConvNeXt's layer norms and factors per channel in inference: steps of one native program with the convolutions."""

from __future__ import annotations

import copy
import operator

import pytest
import timm
import torch
from timm.layers.norm import LayerNorm2d
from torch import nn
from torchvision.models import convnext

import dwsep
from dwsep.ops.inference_program import Kind
from tests.accelerate.test_mixed_inference import calls
from tests.accelerate.toys import check_bfloat16, check_inference, distance

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


def _reshaped(block):
    return block.gamma.reshape(1, -1, 1, 1)


def _viewed(block):
    return block.gamma.view(1, 20, 1, 1)


def _as_it_is(block):
    return block.gamma


class Block(nn.Module):
    """Depthwise convolution, layer norm, 1x1, GELU, 1x1, factors, sum."""

    def __init__(self, channels=20, norm=LayerNorm2d, factors=_reshaped, add=operator.add, shape=None, **options):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = norm(channels, **options)
        self.mlp = nn.Sequential(nn.Conv2d(channels, 44, 1), nn.GELU(), nn.Conv2d(44, channels, 1))
        self.gamma = nn.Parameter(torch.randn(shape or channels))
        self.factors, self.add = factors, add

    def forward(self, x):
        return self.add(self.mlp(self.norm(self.conv_dw(x))).mul(self.factors(self)), x)


class Network(nn.Module):
    """Patches, a layer norm, blocks, patches of these, a layer norm of the means, classifier."""

    def __init__(self, block=Block, **options):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 4, 4), LayerNorm2d(20))
        self.blocks = nn.Sequential(block(**options), block(**options))
        self.down = nn.Sequential(LayerNorm2d(20), nn.Conv2d(20, 24, 2, 2))
        self.pool, self.norm, self.fc = nn.AdaptiveAvgPool2d(1), LayerNorm2d(24), nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(self.norm(self.pool(self.down(self.blocks(self.stem(x))))).flatten(1))


def randomised(net):
    for module in net.modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


@pytest.mark.parametrize("size", [(32, 40), (8, 8), (8, 9)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": convnext.LayerNorm2d},
        {"elementwise_affine": False, "norm": convnext.LayerNorm2d},
        {"eps": 0.1},
        {"add": operator.iadd},
        {"factors": _viewed},
        {"factors": _as_it_is, "shape": (20, 1, 1)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_network_is_one_program(options, batch, size):
    net = randomised(Network(**options))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(batch, 3, *size))
    (kinds,) = calls(net)
    assert kinds.count(Kind.LAYER_NORM) == 5
    assert set(kinds) == {Kind.LAYER_NORM, Kind.DENSE, Kind.DEPTHWISE, Kind.POINTWISE, Kind.POOL}
    assert len(kinds) == 15


class _InPlaceOfTheShortcut(Block):
    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x))).mul(self.factors(self))
        shortcut = x
        x += y
        return x + 0 * shortcut


class _FactorTakenTwice(Block):
    def forward(self, x):
        factors = self.factors(self)
        return self.mlp(self.norm(self.conv_dw(x))).mul(factors) + x + factors


class _WrittenBetween(Block):
    """What is added changes between the convolution that the factors belong to, and the sum."""

    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x)))
        x = x.mul_(2)
        return y.mul(self.factors(self)) + x


class _ProductTakenTwice(Block):
    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x))).mul(self.factors(self))
        return y + x + y.abs()


@pytest.mark.parametrize("block", [_InPlaceOfTheShortcut, _FactorTakenTwice, _WrittenBetween, _ProductTakenTwice])
def test_factors_that_others_see(block):
    net = randomised(Network(block))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 32, 40))


@pytest.mark.parametrize("shape", [(1,), (20,), (20, 20), (3, 20, 1, 1)])
def test_factors_that_are_not_per_channel(shape):
    net = randomised(Network(factors=_as_it_is, shape=shape))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(3, 3, 80, 80))


@pytest.mark.parametrize("change", ["norm", "gamma", "eps", "assign"])
def test_parameters_may_change(change):
    net = randomised(Network())
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 32, 40)
    check_inference(net, x)
    block = net.blocks[1]
    with torch.no_grad():
        before = net(x)
        if change == "norm":
            block.norm.weight.mul_(2)
        elif change == "gamma":
            block.gamma.add_(1)
        elif change == "eps":
            block.norm.eps = 0.5
        else:
            block.gamma = nn.Parameter(torch.randn(20))
        assert distance(net(x), before) > 1e-3
    check_inference(net, x)


def test_a_hook_on_a_norm_is_called():
    net = randomised(Network())
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 32, 40)
    check_inference(net, x)
    net.blocks[0].norm.register_forward_hook(lambda module, args, out: out + 1)
    check_inference(net, x)


def test_a_norm_in_fast_arithmetic_is_left_alone():
    net = randomised(Network())
    net.blocks[0].norm._fast_norm = True
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 32, 40))
    assert len(calls(net)) > 1


def test_training_still_has_gradients():
    net = randomised(Network())
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        net(x)
    for model in (net, plain):
        model(x).square().sum().backward()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert distance(mine.grad, theirs.grad) < 1e-4


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    check_bfloat16(randomised(Network()), torch.randn(2, 3, 32, 40), autocast)


def test_convnext_atto():
    torch.manual_seed(0)
    net = randomised(timm.create_model("convnext_atto"))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(1, 3, 64, 64))
    assert len(calls(net)) == 1
