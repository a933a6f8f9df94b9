"""Accelerated training: outputs, statistics and gradients against the same step in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dwsep
from dwsep.accelerate import _training
from dwsep.bench.network_problem import saved_bytes
from tests.accelerate.toys import Net, check_step, conv_norm, distance, draws_again, randomise


@pytest.fixture(autouse=True, params=[True, False], ids=["segments", "single"])
def _stages_everywhere(monkeypatch, request):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    monkeypatch.setattr(_training, "SEGMENTS", request.param)


@pytest.fixture(name="runs")
def _runs(monkeypatch):
    """How often a program has trained on stages."""
    calls = []
    plain = _training.run

    def run(program, *rest):
        if not draws_again():
            calls.append(program)
        return plain(program, *rest)

    monkeypatch.setattr(_training, "run", run)
    return calls


@pytest.fixture(name="x")
def _x():
    return torch.randn(3, 3, 20, 24)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.Identity])
@pytest.mark.parametrize("gate", [False, True])
def test_step_matches_eager(activation, gate, x, runs):
    net = randomise(Net(activation, gate))
    dwsep.accelerate_(net)
    check_step(net, x)
    check_step(net, x.requires_grad_())
    assert len(runs) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"momentum": None},
        {"momentum": 0.3, "eps": 0.1},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_norms_follow_their_options(options, x, runs):
    net = randomise(Net(**options))
    dwsep.accelerate_(net)
    for _ in range(2):
        check_step(net, x)
    net.eval()
    check_step(net, x)
    assert len(runs) == 3


def test_frozen_norms_take_their_running_statistics(x, runs):
    net = randomise(Net())
    dwsep.accelerate_(net)
    net.eval()
    check_step(net, x)
    net.train()
    for module in net.blocks[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    check_step(net, x.requires_grad_())
    assert len(runs) == 2


@pytest.mark.parametrize("frozen", ["conv", "norm", "stem", "all but one", "all"])
def test_frozen_parameters_get_no_gradient(frozen, x, runs):
    net = randomise(Net(bias=True))
    dwsep.accelerate_(net)
    for name, parameter in net.named_parameters():
        kind = "norm" if parameter.dim() == 1 and ".1." in name else "conv"
        frozen_here = frozen in (kind, "all", name.split(".")[0]) or (
            frozen == "all but one" and name != "blocks.0.depthwise.1.weight"
        )
        parameter.requires_grad_(not frozen_here)
    check_step(net, x)
    assert len(runs) == 1


def test_no_grad_in_train_mode_updates_statistics(x, runs):
    net = randomise(Net())
    dwsep.accelerate_(net)

    def call(model):
        def without(x):
            with torch.no_grad():
                return model(x)

        return without

    check_step(net, x, call)
    assert len(runs) == 1
    assert net.stem[1].num_batches_tracked == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, x, runs):
    net = randomise(Net(nn.SiLU, gate=True))
    dwsep.accelerate_(net)
    x.requires_grad_()
    check_step(net, x, lambda model: lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert len(runs) == 2


def test_checkpointing_inside_a_forward_is_kept(x, runs):
    class Checkpointed(Net):
        saves = False

        def forward(self, x):
            x = self.stem(x)
            x = checkpoint(self.blocks, x, use_reentrant=False) if self.saves else self.blocks(x)
            return self.classifier(self.head(x).mean((2, 3)))

    net = randomise(Checkpointed())
    dwsep.accelerate_(net)
    check_step(net, x)
    assert len(runs) == 1
    net.saves = True
    check_step(net, x)
    assert len(runs) == 3  # the blocks alone, forward and again for backward


def test_several_takers_of_one_output(x, runs):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
            self.left = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6))
            self.right = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.SiLU())
            self.identity = nn.BatchNorm2d(6)

        def forward(self, x):
            x = self.first(x)
            return torch.relu(self.left(x) + self.right(x)) * x + self.identity(x)

    net = randomise(Branches())
    dwsep.accelerate_(net)
    check_step(net, x.requires_grad_())
    assert len(runs) == 1


@pytest.mark.parametrize(("shortcut", "joins"), [(nn.Identity(), 1), (nn.Dropout(0.0), 1), (nn.SiLU(), 0)])
def test_a_shortcut_that_is_a_module(shortcut, joins, x, runs):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(*conv_norm(3, 8, 3, activation=nn.ReLU()))
            self.body = nn.Sequential(*conv_norm(8, 8, 3, groups=8, activation=nn.ReLU()), *conv_norm(8, 8))
            self.shortcut = shortcut

        def forward(self, x):
            x = self.stem(x)
            return self.body(x) + self.shortcut(x)

    net = randomise(Residual())
    dwsep.accelerate_(net)
    check_step(net, x.requires_grad_())
    assert len(runs) == 1
    assert sum(stage.residual is not None for stage in runs[0].stages()) == joins


@pytest.mark.parametrize("drop", [nn.Identity(), nn.Dropout(0.0)])
def test_a_sum_into_what_a_module_passes_on(drop, x):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(*conv_norm(3, 8, 3), *conv_norm(8, 8, 3, groups=8, activation=nn.ReLU()))
            self.conv, self.drop = nn.Conv2d(8, 8, 1), drop
            self.gate, self.end = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            z = self.stem(x)
            y = self.conv(z)
            gate = torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
            y = self.drop(y)
            y += z
            return self.end(y) * gate

    net = randomise(Sum())
    dwsep.accelerate_(net)
    check_step(net, x.requires_grad_())


@pytest.mark.parametrize("norm", [True, False])
def test_depthwise_convolutions_with_several_outputs_a_channel(norm, x, runs):
    net = nn.Sequential(
        *conv_norm(3, 6, 3, groups=3, activation=nn.SiLU()),
        nn.Conv2d(6, 18, 3, 2, 1, groups=6),
        nn.BatchNorm2d(18) if norm else nn.SiLU(),
        *conv_norm(18, 4),
    )
    dwsep.accelerate_(randomise(net))
    check_step(net, x.requires_grad_())
    assert runs


def test_one_value_per_channel_is_refused_as_in_torch(runs):
    net = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2))
    dwsep.accelerate_(net)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        net(torch.randn(1, 2, 3, 3))


def test_saves_at_most_half_of_eager_for_backward(x):
    net = randomise(Net(nn.SiLU))
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(8, 3, 32, 32)
    assert saved_bytes(net, x) <= 0.55 * saved_bytes(plain, x)


def test_an_optimizer_built_before_trains_the_same(x):
    net = randomise(Net())
    plain = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (net, plain)]
    dwsep.accelerate_(net)
    for _ in range(5):
        for model, optimizer in zip((net, plain), optimizers):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert distance(dict(net.state_dict()), dict(plain.state_dict())) < 1e-4
    net.eval(), plain.eval()
    with torch.no_grad():
        assert distance(net(x), plain(x)) < 1e-4


def test_switched_off_training_is_that_of_eager(x, runs, monkeypatch):
    monkeypatch.setattr(_training, "ENABLED", False)
    net = randomise(Net())
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    assert torch.equal(net(x), plain(x))
    assert not runs


@pytest.mark.parametrize("padding", [0, 1])
def test_strided_narrow_convolutions_stay_within_memory(padding, runs, monkeypatch):
    """oneDNN's gradient for the weight of a strided 1x1 convolution of few channels, channels-last, does not."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1, 2, padding, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Net().blocks[1])
    dwsep.accelerate_(randomise(net))
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    check_step(net, x)

    def never(*_args, **_options):
        raise AssertionError("torch ran a convolution")

    monkeypatch.setattr(torch.nn.functional, "conv2d", never)
    net(x)
    assert len(runs) == 2


class _Squeezed(nn.Module):
    """A block whose gate is detached, used twice, or followed by other takers of what it gates."""

    def __init__(self, takes):
        super().__init__()
        self.block, self.takes = Net().blocks[1], takes
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.norm = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.block.depthwise(self.block.expand(x))
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = self.takes(x, gate)
        return torch.relu(self.norm(self.project(x)))


@pytest.mark.parametrize(
    "takes",
    [
        lambda x, gate: x * gate,
        lambda x, gate: gate * x,
        lambda x, gate: x * gate.detach(),
        lambda x, gate: x * gate + (1 - gate) * x,
        lambda x, gate: x * gate * torch.mean(x, (-1, -2), True),
        lambda x, gate: (x * gate) + x,
        lambda x, gate: x + 0 * gate,
        lambda x, gate: x.detach() * gate,
        lambda x, gate: torch.relu(x * gate),
        lambda x, gate: torch.relu(x * gate) * torch.mean(torch.relu(x * gate), (-1, -2), True),
    ],
    ids=[
        *("product", "turned", "detached gate", "two", "two means", "other taker", "no product", "detached"),
        *("activation behind", "means of it"),
    ],
)
def test_gates_in_every_position(takes, runs):
    net = randomise(_Squeezed(takes))
    dwsep.accelerate_(net)
    x = torch.randn(2, 8, 9, 12, requires_grad=True)
    check_step(net, x)
    assert runs
    check_step(net, x, lambda model: lambda x: checkpoint(model, x, use_reentrant=False))
    for _ in range(2):  # a kept graph goes back twice
        net.zero_grad()
        out = net(x)
        out.sum().backward(retain_graph=True)
        once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        out.sum().backward()
        assert all(
            torch.equal(2 * a, p.grad) for a, p in zip(once, (p for p in net.parameters() if p.grad is not None))
        )
