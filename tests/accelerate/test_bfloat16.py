"""Accelerated inference of networks of bfloat16: float32 between the steps, rounded products, rounded results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _training
from tests.accelerate.toys import Net, distance, program_runs, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


@pytest.fixture(name="x")
def _x():
    return torch.randn(2, 3, 20, 24).bfloat16()


class Ends(nn.Module):
    """A network with something behind it whose dtype under autocast nobody tells."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return torch.softmax(self.net(x), 1)


def _net(**options) -> nn.Module:
    return randomise(Net(**options)).eval().bfloat16()


def _check(model: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    """Closer to the same network in float64 than eager bfloat16 is, or about as close."""
    truth = copy.deepcopy(plain).double()
    with torch.no_grad():
        wanted, theirs = truth(x.double()), plain(x)
        for _ in range(2):  # the first time that a shape is seen, and once more
            ours = model(x)
            assert ours.dtype is torch.bfloat16
            assert ours.stride() == theirs.stride()
            assert distance(ours.double(), wanted) <= 1.5 * distance(theirs.double(), wanted) + 4e-3


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish])
@pytest.mark.parametrize("gate", [False, True])
def test_results_are_as_close_as_eager_ones(activation, gate, x):
    net = _net(activation=activation, gate=gate, bias=True)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    _check(net, plain, x)
    _check(net, plain, x[:1, :, :7, :9].contiguous(memory_format=torch.channels_last))
    assert program_runs(net)
    with torch.no_grad():
        assert not torch.equal(net(x), plain(x))  # it ran: eager rounds in between


def test_weights_that_change_are_seen(x):
    net = _net()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(x)
        for model in (net, plain):
            for parameter in model.parameters():
                parameter.mul_(1.25)
    _check(net, plain, x)
    dwsep.revert_(net)
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))


def test_a_module_with_parameters_takes_and_gives_bfloat16(x):
    blocks = nn.Sequential(nn.Conv2d(3, 8, 1), *Net().blocks)
    with torch.no_grad():
        shape = list(blocks(x.float()).shape[2:])
    net = randomise(nn.Sequential(*blocks, nn.LayerNorm(shape))).eval().bfloat16()
    plain = copy.deepcopy(net)
    seen = []
    net[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    dwsep.accelerate_(net)
    _check(net, plain, x)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("buffer", [False, True])
def test_a_module_with_a_tensor_of_its_own_takes_and_gives_bfloat16(buffer, x):
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.ones(8, 1, 3, 3).bfloat16() / 9
            if buffer:
                self.register_buffer("weight", weight)
            else:
                self.weight = weight

        def forward(self, x):
            return torch.conv2d(x, self.weight, padding=1, groups=8) if type(x) is torch.Tensor else x.whole()

    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Blur(), *Net().blocks)).eval().bfloat16()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        for _ in range(2):
            assert distance(net(x), plain(x)) < 2e-2


class Looks(nn.Module):
    """Asks for the dtype of what it computes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        y = self.net(x)
        return y.float() if y.dtype == torch.bfloat16 else y * torch.nan


def test_a_forward_that_asks_for_the_dtype_runs_as_before(x):
    net = Looks(_net())
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        for _ in range(2):
            ours = net(x)
            assert ours.dtype is torch.float32
            assert distance(ours, plain(x)) < 2e-2


def test_inputs_of_another_dtype_are_refused_as_before(x):
    net = _net()
    dwsep.accelerate_(net, frozen=True)
    with torch.no_grad():
        net(x)
        with pytest.raises(RuntimeError):
            net(x.float())
        plain = copy.deepcopy(net).float()
        with pytest.raises(RuntimeError):
            plain(x)
        assert plain(x.float()).dtype is torch.float32


def test_training_in_bfloat16_runs_as_before(x):
    net = _net().train()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    for model in (net, plain):
        model(x).float().sum().backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "name", ["mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_b0", "mixnet_s", "convnext_atto", "ghostnet_100"]
)
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 96, 96))  # running statistics of its own activations
    net = net.eval().bfloat16().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    _check(net, plain, x.bfloat16())
    net, plain = net.float(), plain.float()
    _check_under_autocast(net, plain, x)


def test_analyze_times_its_steps(x, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = _net(gate=True)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    report = dwsep.analyze(net, x, seconds=0, advice=False)
    assert any(row.fused for row in report.rows)
    assert report.macs == dwsep.analyze(plain, x, latency=False).macs
    _check(net, plain, x)


def test_an_input_that_is_a_part_of_another(x):
    net = _net()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    wide = torch.randn(2, 3, 40, 24).bfloat16().contiguous(memory_format=torch.channels_last)
    _check(net, plain, wide[:, :, ::2])


def _check_under_autocast(model: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    """Closer to float64 than eager under autocast is, or about as close; in the same dtype and layout."""
    with torch.no_grad():
        wanted = copy.deepcopy(plain).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            theirs = plain(x)
            for _ in range(2):
                ours = model(x)
                assert ours.dtype is theirs.dtype
                assert ours.stride() == theirs.stride()
                assert distance(ours.double(), wanted) <= 1.5 * distance(theirs.double(), wanted) + 4e-3


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_to_bfloat16(gate, dtype, x):
    net = randomise(Net(gate=gate)).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net, frozen=True)
    x = x.to(dtype)
    _check_under_autocast(net, plain, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(net(x), plain(x))  # it ran: eager rounds in between
    with torch.no_grad():
        assert distance(net(x.float()), plain(x.float())) < 1e-5  # and float32 is float32 again


def test_autocast_of_a_sum_with_the_input_gives_what_eager_gives():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
            self.mix, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return x + self.norm2(self.mix(torch.relu(self.norm(self.conv(x)))))

    net = randomise(Block()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(2, 8, 9, 7)
    for each, dtype in ((x, torch.float32), (x.bfloat16(), torch.bfloat16)):
        _check_under_autocast(net, plain, each)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert net(each).dtype is dtype


def test_autocast_of_what_is_not_known_to_keep_its_dtype_runs_as_before(x):
    net = randomise(Ends()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = x.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype is plain(x).dtype
        assert distance(net(x), plain(x)) < 2e-2


def test_autocast_sees_weights_that_change(x):
    net = randomise(Net()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = x.float()
    _check_under_autocast(net, plain, x)
    with torch.no_grad():
        for model in (net, plain):
            for parameter in model.parameters():
                parameter.mul_(1.25)
    _check_under_autocast(net, plain, x)


def _step(model: nn.Module, x: torch.Tensor, autocast: bool = True) -> torch.Tensor:
    """A training step's output, with the gradients behind it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.double().square().mean().backward()
    return y


def _runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by whether autocast is on with every training step that runs on stages."""
    ran, run = [], _training.run
    monkeypatch.setattr(_training, "run", lambda *a: (ran.append(torch.is_autocast_enabled("cpu")), run(*a))[1])
    return ran


def _gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", [False, True])
def test_training_under_autocast_is_closer_to_float64_than_eager(gate, dtype, x, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = randomise(Net(gate=gate)).train()
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    dwsep.accelerate_(net)
    ran = _runs(monkeypatch)
    x = x.to(dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    ours, theirs = (_step(model, each) for model, each in zip((net, plain), inputs, strict=True))
    wanted = _step(exact, x.double(), autocast=False)
    assert ran == [False]  # float32 throughout
    assert ours.dtype is theirs.dtype
    assert ours.stride() == theirs.stride()
    assert inputs[0].grad is not None
    assert inputs[0].grad.dtype is dtype
    assert distance(ours.double(), wanted) <= distance(theirs.double(), wanted) + 4e-3
    away = distance(_gradients(plain), _gradients(exact))
    assert distance(_gradients(net), _gradients(exact)) <= away + 1e-2 * (dtype is torch.bfloat16)
    for name, value in exact.named_buffers():
        assert distance(net.get_buffer(name).double(), value.double()) < 1e-2


@pytest.mark.parametrize("what", ["softmax at the end", "weights of bfloat16"])
def test_training_under_autocast_runs_the_parts_whose_dtypes_are_known(what, x, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = randomise(Ends() if what == "softmax at the end" else Net()).train()
    if what == "weights of bfloat16":
        net.head.bfloat16()
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    dwsep.accelerate_(net)
    ours, theirs = _step(net, x.float()), _step(plain, x.float())
    wanted = _step(exact, x.double(), autocast=False)
    assert ours.dtype is theirs.dtype
    # Of a bfloat16 result its own rounding is most of the distance.
    assert distance(ours.double(), wanted) < 1.1 * distance(theirs.double(), wanted)
    assert distance(_gradients(net), _gradients(exact)) < distance(_gradients(plain), _gradients(exact))


def test_training_under_autocast_without_batch_norms(monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 40, 1), nn.GELU(), nn.Conv2d(40, 8, 1)
    ).train()
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    assert dwsep.accelerate_(net).fused
    ran = _runs(monkeypatch)
    x = torch.randn(2, 8, 9, 7)
    for model in (net, plain):
        _step(model, x)
    _step(exact, x.double(), autocast=False)
    assert ran == [False]
    assert distance(_gradients(net), _gradients(exact)) < distance(_gradients(plain), _gradients(exact))
