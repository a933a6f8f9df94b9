"""Accelerated inference: numbers, and everything that must make it step aside or start anew."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from tests.accelerate.toys import Gate, Net, conv_norm, distance, program_runs, randomise


@pytest.fixture(name="net")
def _net():
    return randomise(Net(gate=True)).eval()


@pytest.fixture(name="x")
def _x():
    return torch.randn(2, 3, 20, 24)


def _check(model, plain, x):
    """The first time that a shape is seen, and once more."""
    with torch.no_grad():
        for _ in range(2):
            assert distance(model(x), plain(x)) < 1e-5


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.Identity])
@pytest.mark.parametrize("gate", [False, True])
def test_inference_matches_eager(activation, gate, x):
    net = randomise(Net(activation, gate, bias=True)).eval()
    plain = copy.deepcopy(net)
    report = dwsep.accelerate_(net)
    assert len(report.fused) == (10 if gate else 8)
    _check(net, plain, x)
    _check(net, plain, x[:1, :, :7, :9].contiguous(memory_format=torch.channels_last))
    assert program_runs(net)


def test_what_changes_nothing(net, x):
    keys, parameters = list(net.state_dict()), list(net.parameters())
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    dwsep.accelerate_(net)
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    with torch.no_grad():
        net(x)
    plain = copy.deepcopy(net)
    dwsep.revert_(plain)
    net(x).sum().backward()
    optimizer.step()
    assert distance(net(x), plain(x)) > 1e-3
    _check(net, _reverted(net), x)
    dwsep.revert_(net)
    for name, module in net.named_modules():
        assert vars(module).keys() == before[name].keys()


def _reverted(model):
    plain = copy.deepcopy(model)
    dwsep.revert_(plain)
    assert not any("forward" in vars(module) for module in plain.modules())
    return plain


@pytest.mark.parametrize(
    "change", ["step", "data", "replace", "load", "assign", "eps", "buffer", "submodule", "double"]
)
def test_weights_may_change(net, x, change):
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(x)
    conv, norm = net.blocks[0].project
    other = randomise(Net(gate=True))
    with torch.no_grad():
        if change == "step":
            conv.weight.mul_(1.5)
        elif change == "data":
            conv.weight.data = conv.weight.data * 1.5
        elif change == "replace":
            norm.weight = nn.Parameter(norm.weight * 1.5)
        elif change in ("load", "assign"):
            net.load_state_dict(other.state_dict(), assign=change == "assign")
        elif change == "eps":
            norm.eps = 0.5
        elif change == "buffer":
            norm.running_var.fill_(3)
        elif change == "submodule":
            net.blocks[0].project[1] = nn.Identity()
        else:
            net.double()
            x = x.double()
    _check(net, _reverted(net), x)


def test_modes_may_change_at_any_time(net, x):
    dwsep.accelerate_(net)
    plain = _reverted(net)
    for mode in (True, False, True, False):
        for model in (net, plain):
            model.train(mode)
        _check(net, plain, x)
    assert distance(dict(net.state_dict()), dict(plain.state_dict())) < 1e-6
    for model in (net, plain):
        model.blocks[0].depthwise[1].train()
    _check(net, plain, x)


def test_dropout_follows_the_mode(x):
    net = randomise(Net(dropout=0.5)).eval()
    dwsep.accelerate_(net)
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        net.dropout.train()
        assert not torch.equal(net(x), net(x))


def test_hooks_see_their_module_run(net, x):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(x)
        seen = []
        handles = [
            module.register_forward_hook(lambda module, args, out: seen.append(out))
            for model in (net, plain)
            for module in (model.blocks[1].depthwise[1], model.stem, model.blocks[0].gate)
        ]
        ours, theirs = net(x), plain(x)
        assert len(seen) == 6
        # The stem runs first, then the gate of the first block.
        for a, b in zip(seen[:3], seen[3:]):
            assert distance(a, b) < 1e-5
        assert distance(ours, theirs) < 1e-5
        for handle in handles:
            handle.remove()
        net(x)
        assert len(seen) == 6


def _lowered(net):
    """What runs for the shapes seen, by the names of the parts."""
    (steps,) = net.forward.reading().plan.lowered.values()
    return [type(step).__name__ for step in steps]


def test_a_whole_network_is_one_call(net, x):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    for _ in range(2):
        _check(net, plain, x)
    if dwsep.ops.native_status().loaded:
        assert _lowered(net) == ["NativeSegment"]
    with torch.no_grad():
        net.classifier.weight.mul_(1.5)
        plain.classifier.weight.mul_(1.5)
    _check(net, plain, x)
    seen = []
    net.classifier.register_forward_hook(lambda module, args, out: seen.append(out))
    net.blocks[1].gate.reduce.register_forward_hook(lambda module, args, out: seen.append(out))
    _check(net, plain, x)
    assert len(seen) == 4


def test_a_gated_convolution_before_a_depthwise_one(x):
    gate, project = Gate(8), nn.Sequential(*conv_norm(8, 12, activation=nn.ReLU()))
    depthwise = nn.Sequential(*conv_norm(12, 12, 3, groups=12, activation=nn.ReLU()))
    stem = nn.Sequential(*conv_norm(3, 8, 3), *conv_norm(8, 8, 3, groups=8, activation=nn.ReLU()))
    for end in (nn.Identity(), nn.Conv2d(12, 5, 1)):
        net = randomise(nn.Sequential(stem, gate, project, depthwise, end)).eval()
        plain = copy.deepcopy(net)
        dwsep.accelerate_(net)
        _check(net, plain, x)


class _Varying(nn.Module):
    """Returns other sizes from one call to the next."""

    calls = 0

    def forward(self, x):
        _Varying.calls += 1
        return x[..., : -(_Varying.calls % 3 + 1)].clone() if bool((x == x).all()) else x


def test_sizes_that_change_between_calls(x):
    net = randomise(Net()).eval()
    net.blocks = nn.Sequential(*net.blocks, _Varying(), *copy.deepcopy(net.blocks)[:0], nn.Identity())
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    for _ in range(4):
        before = _Varying.calls
        with torch.no_grad():
            wanted = plain(x)
            _Varying.calls = before
            assert distance(net(x), wanted) < 1e-5


def test_many_shapes_one_after_the_other(net):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    for size in (*range(8, 20), *range(8, 20)):
        _check(net, plain, torch.randn(1, 3, size, 9))
    assert len(net.forward.reading().plan.lowered) <= 8


def test_a_hook_that_changes_the_output_does(net, x):
    dwsep.accelerate_(net)
    net.blocks[0].expand[1].register_forward_hook(lambda module, args, out: 2 * out)
    _check(net, _reverted(net), x)


def test_copies_and_pickles_are_accelerated(net, x):
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(x)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.mul_(1.25)
        _check(again, _reverted(again), x)
        assert program_runs(again)
        assert vars(again)["forward"].module is again
        with torch.no_grad():
            assert distance(again(x), net(x)) > 1e-2


def test_averaged_copy_follows_its_own_weights(net, x):
    dwsep.accelerate_(net)
    average = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        average(x)
        for parameter in net.parameters():
            parameter.mul_(0.5)
        average.update_parameters(net)
        average.update_parameters(net)
    _check(average, _reverted(average), x)


def test_shared_modules_stay_shared(x):
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3), nn.ReLU())
    net = randomise(nn.Sequential(block, block)).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    assert net[0] is net[1]
    _check(net, plain, x)


def test_twice_is_harmless(net, x):
    plain = copy.deepcopy(net)
    assert str(dwsep.accelerate_(net)) == str(dwsep.accelerate_(net))
    _check(net, plain, x)
    dwsep.revert_(net)
    dwsep.revert_(net)
    assert "forward" not in vars(net)


@pytest.mark.parametrize("weights_last, input_last", [(False, False), (True, False), (False, True)])
def test_layout_is_what_eager_returns(weights_last, input_last, x):
    net = randomise(nn.Sequential(*Net().blocks)).eval()
    if weights_last:
        net = net.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 12, 14)
    x = x.contiguous(memory_format=torch.channels_last) if input_last else x
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        assert net(x).stride() == plain(x).stride()
    _check(net, plain, x)


def test_autocast_functorch_and_other_dtypes_run_as_before(net, x):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(net(x), plain(x))
        batched = torch.stack([x, 2 * x])
        assert distance(torch.vmap(net)(batched), torch.vmap(plain)(batched)) < 1e-6
        net.double(), plain.double()
        assert torch.equal(net(x.double()), plain(x.double()))


def test_functional_call_uses_the_tensors_given(net, x):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    other = {name: 1.5 * tensor for name, tensor in net.named_parameters()}
    with torch.no_grad():
        net(x)
        ours, theirs = (torch.func.functional_call(model, other, (x,)) for model in (net, plain))
        assert distance(ours, theirs) < 1e-5
    _check(net, plain, x)


def test_compile_and_export_see_the_original(net, x):
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert distance(compiled(x), plain(x)) < 1e-6
        with pytest.warns(FutureWarning, match="deprecated"):
            traced = torch.jit.trace(net, x, check_trace=False)
        assert distance(traced(x), plain(x)) < 1e-6
        assert distance(torch.fx.symbolic_trace(net)(x), plain(x)) < 1e-6
    exported = torch.export.export(net, (x,))
    assert not any("dwsep" in str(node.target) for node in exported.graph.nodes)


def test_errors_are_those_of_eager(net):
    dwsep.accelerate_(net)
    with torch.no_grad(), pytest.raises(RuntimeError, match="to have 3 channels, but got 4"):
        net(torch.randn(1, 4, 20, 20))
    with torch.no_grad():
        assert net(torch.randn(3, 20, 20)[None]).shape == (1, 5)


def test_a_root_may_take_more_and_return_more(x):
    class Two(Net):
        def forward(self, x, scale=None, *, both=False):
            y = self.blocks(self.stem(x))
            if scale is not None:
                y = y * scale
            return {"out": y, "pair": (y.mean(), None)} if both else {"out": y, "pair": (y.sum(), "text")}

    net = randomise(Two()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad():
        ours, theirs = net(x), plain(x)
        assert ours["pair"][1] == "text"
        assert distance((ours["out"], ours["pair"][0]), (theirs["out"], theirs["pair"][0])) < 1e-5
        assert distance(net(x, 2.0)["out"], plain(x, 2.0)["out"]) < 1e-5
        assert net(x, both=True)["pair"][1] is None
    assert program_runs(net)


def test_control_flow_leaves_the_rest_accelerated(x):
    class Choosy(Net):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = randomise(Choosy()).eval()
    plain = copy.deepcopy(net)
    report = dwsep.accelerate_(net)
    assert [line.name for line in report.left_alone] == [""]
    assert "control flow" in report.left_alone[0].reason
    _check(net, plain, x)
    _check(net, plain, -x)
    assert program_runs(net.blocks)
    assert not program_runs(net)


def test_a_forward_replaced_later_is_called(net, x):
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(x)
        for module in (net.blocks[0], net.blocks[1].depthwise[0], net.head[2]):
            own = type(module).forward
            module.forward = lambda x, own=own, module=module: 2 * own(module, x)
            plain = copy.deepcopy(net)
            dwsep.revert_(plain)
            assert distance(net(x), plain(x)) < 1e-5


def test_the_roots_own_state_is_seen(x):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.end = nn.Sequential(*conv_norm(3, 3, 3, groups=3)), nn.Conv2d(3, 4, 1)
            self.flag, self.p = False, 0.5

        def forward(self, x):
            x = self.end(self.body(x))
            x = nn.functional.dropout(x, self.p, self.training)
            return -x if self.flag else x

    net = randomise(Root()).eval()
    dwsep.accelerate_(net)
    _check(net, _reverted(net), x)
    net.end = nn.Conv2d(3, 5, 1)
    _check(net, _reverted(net), x)
    net.flag = True
    _check(net, _reverted(net), x)
    net.train()
    assert 0.3 < (net(x) == 0).float().mean() < 0.7
    net.p = 0.0
    assert (net(x) == 0).float().mean() < 0.1
    net.eval()
    _check(net, _reverted(net), x)
