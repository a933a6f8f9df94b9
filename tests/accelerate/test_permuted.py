"""ConvNeXt's norms and products over the last axis, between two permutations: a native program, and stages."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers.grn import GlobalResponseNorm
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from torch import nn
from torchvision.ops.misc import Permute

import dwsep
from dwsep.accelerate import _training
from dwsep.ops.inference_program import Kind
from tests.accelerate.test_layer_norms import Network, randomised
from tests.accelerate.test_mixed_inference import calls
from tests.accelerate.toys import check_bfloat16, check_inference, check_step, distance, program_runs

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


def _by_method(x, dims):
    return x.permute(*dims)


def _by_dims(x, dims):
    return x.permute(dims)


def _by_function(x, dims):
    return torch.permute(x, [axis - 4 for axis in dims])


class Block(nn.Module):
    """Depthwise convolution, then over the last axis layer norm, product, GELU and product, then factors and sum."""

    def __init__(self, permuted=_by_method, norm=LayerNorm, between=nn.Identity, timm_mlp=False, **options):
        super().__init__()
        self.conv_dw = nn.Conv2d(20, 20, 7, padding=3, groups=20)
        self.norm = norm(20, **options)
        layers = nn.Linear(20, 44), nn.GELU(), between(), nn.Linear(44, 20, bias=False)
        self.mlp = Mlp(20, 44, 20) if timm_mlp else nn.Sequential(*layers)
        self.gamma = nn.Parameter(torch.randn(20, 1, 1))
        self.permuted = permuted

    def forward(self, x):
        y = self.mlp(self.norm(self.permuted(self.conv_dw(x), (0, 2, 3, 1))))
        return self.gamma * self.permuted(y, (0, 3, 1, 2)) + x


class _Modules(Block):
    """With modules that permute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.there, self.back = Permute([0, 2, 3, 1]), Permute([0, 3, 1, 2])

    def forward(self, x):
        return self.gamma * self.back(self.mlp(self.norm(self.there(self.conv_dw(x))))) + x


def network(block=Block, **options):
    return randomised(Network(block, **options))


def _whole(net):
    """The kinds of steps of the native program that the network is."""
    (kinds,) = calls(net)
    assert kinds.count(Kind.LAYER_NORM) == 5
    assert set(kinds) == {Kind.LAYER_NORM, Kind.DENSE, Kind.DEPTHWISE, Kind.POINTWISE, Kind.POOL}
    assert len(kinds) == 15


@pytest.mark.parametrize("size", [(32, 40), (8, 9)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"permuted": _by_dims},
        {"permuted": _by_function},
        {"block": lambda **options: _Modules(**options)},
        {"norm": nn.LayerNorm},
        {"elementwise_affine": False, "norm": nn.LayerNorm},
        {"eps": 0.1},
        {"timm_mlp": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_network_is_one_program(options, batch, size):
    net = network(**options)
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(batch, 3, *size))
    _whole(net)


class _Sum(Block):
    """Sums and activations over the last axis, and what has no other form there."""

    does = staticmethod(lambda block, y: y)

    def forward(self, x):
        y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        return self.does(self, y).permute(0, 3, 1, 2) + x


def _shortcut_within(block, y):
    return block.mlp(y) + y


def _sum_of_activations(block, y):
    return torch.relu(block.mlp(y)) + nn.functional.silu(y)


def _image_taken_too(block, y):
    z = y.permute(0, 3, 1, 2)
    return (nn.functional.gelu(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + block.conv_dw(z)).permute(0, 2, 3, 1)


def _product_taken_too(block, y):
    z = block.mlp[0](y).permute(0, 3, 1, 2)
    return block.mlp[3](torch.relu(z.permute(0, 2, 3, 1)) + z.permute(0, 2, 3, 1))


def _activation_of_a_sum(block, y):
    z = block.conv_dw(y.permute(0, 3, 1, 2)) + y.permute(0, 3, 1, 2)
    return torch.relu(z.permute(0, 2, 3, 1))


DOES = {
    "image taken too": _image_taken_too,
    "product taken too": _product_taken_too,
    "activation of a sum": _activation_of_a_sum,
    "activation of a sum of products": lambda block, y: torch.relu(block.mlp(y) + y),
    "sum": _shortcut_within,
    "sum of activations": _sum_of_activations,
    "mean of the last axis": lambda block, y: block.mlp(y) * y.mean(-1, keepdim=True),
    "shifted": lambda block, y: block.mlp(y.roll(1, 1)),
    "another permutation": lambda block, y: block.mlp(y).permute(0, 2, 1, 3).permute(0, 2, 1, 3),
    "twice permuted": lambda block, y: block.mlp(y.permute(0, 3, 1, 2).permute(0, 2, 3, 1)),
    "square": lambda block, y: block.mlp(y) * block.mlp(y),
    "activation alone": lambda block, y: torch.relu(y),
    "activation of two": lambda block, y: (lambda z: torch.relu(z) * z)(block.mlp(y)),
    "in place": lambda block, y: (lambda z: torch.relu_(z) * z)(block.mlp(y)),
    "flat": lambda block, y: block.mlp(y.flatten(1, 2)).unflatten(1, y.shape[1:3]),
    "gate": lambda block, y: block.mlp(y) * torch.sigmoid(block.mlp(y.mean((1, 2), keepdim=True))),
    "channels": lambda block, y: torch.cat([block.mlp(y)[..., :7], y[..., 7:]], -1),
    "rows": lambda block, y: torch.cat([block.mlp(y)[:, :3], y[:, 3:]], 1),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", DOES)
def test_what_else_takes_a_permuted_value(name, training, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    monkeypatch.setattr(_Sum, "does", staticmethod(DOES[name]))
    net = network(_Sum).train(training)
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 32, 40)
    if training:
        check_step(net, x)
    else:
        check_inference(net, x)
        assert program_runs(net)


class _Permuted(Block):
    """A permuted value is what it returns."""

    def forward(self, x):
        return self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))


def test_a_permuted_result():
    net = randomised(_Permuted())
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(2, 20, 9, 11)
    check_inference(net, x)
    with torch.no_grad():
        assert net(x).shape == plain(x).shape == (2, 9, 11, 20)


def test_weights_that_change():
    net = network()
    dwsep.accelerate_(net)
    x = torch.randn(1, 3, 32, 32)
    check_inference(net, x)
    for change in (net.blocks[0].mlp[0].weight, net.blocks[1].norm.bias, net.blocks[0].mlp[3].weight):
        with torch.no_grad():
            change.mul_(1.5).add_(0.1)
        check_inference(net, x)
    net.blocks[1].mlp[0].weight = nn.Parameter(net.blocks[1].mlp[0].weight * 2)
    check_inference(net, x)
    _whole(net)


def test_hooks_on_what_is_fused_are_called():
    net = network(permuted=_by_method)
    dwsep.accelerate_(net)
    x = torch.randn(1, 3, 32, 32)
    check_inference(net, x)
    seen = []
    block = net.blocks[0]
    for module in (block.norm, block.mlp[0], block.mlp[1]):
        handle = module.register_forward_hook(lambda module, *_: seen.append(module))
        with torch.no_grad():
            plain = copy.deepcopy(net)
            dwsep.revert_(plain)
            expected = plain(x)
            seen.clear()
            assert distance(net(x), expected) < 1e-5
        handle.remove()
        assert seen == [module]


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"timm_mlp": True}, {"block": lambda **options: _Modules(**options)}], ids="-".join
)
def test_a_training_step_matches_eager(options, segments, monkeypatch):
    monkeypatch.setattr(_training, "SEGMENTS", segments)
    runs = []
    plain = _training.run
    monkeypatch.setattr(_training, "run", lambda *args: runs.append(args) or plain(*args))
    net = network(**options).train()
    dwsep.accelerate_(net)
    check_step(net, torch.randn(2, 3, 32, 40))
    assert runs
    check_inference(net.eval(), torch.randn(2, 3, 32, 40))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    check_bfloat16(network(), torch.randn(2, 3, 32, 40), autocast)


def test_response_norms_between_native_programs():
    net = network(between=lambda: GlobalResponseNorm(44))
    for block in net.blocks:
        nn.init.normal_(block.mlp[2].weight)
        nn.init.normal_(block.mlp[2].bias)
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 32, 40))
    found = calls(net)
    assert [kinds if isinstance(kinds, str) else "program" for kinds in found] == ["program", "Other"] * 2 + ["program"]


@pytest.mark.parametrize("make", [torchvision.models.convnext_tiny, lambda: timm.create_model("convnext_tiny")])
def test_libraries_networks_are_one_program(make):
    torch.manual_seed(0)
    net = make().eval()
    for name, parameter in net.named_parameters():
        if name.endswith(("gamma", "layer_scale")):
            nn.init.normal_(parameter)
    report = dwsep.accelerate_(net)
    assert sum(line.what == "layer norm" for line in report.fused) == 23
    assert sum(line.what == "1x1, gelu" for line in report.fused) == 18
    check_inference(net, torch.randn(1, 3, 64, 64))
    (kinds,) = calls(net)
    assert len(kinds) == 83
