"""Modules that become others in place."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from dwsep import SeparateConfig
from tests.convert.toys import Net, images, trained_net

X = images(2, 3, 14, seed=7)


def separate(model, config=None, x=X, **options):
    config = config or SeparateConfig(rank=99, measure_layers=False)
    return dwsep.separate_(model, config, example_inputs=x, **options)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_full_rank_changes_nothing(order):
    net, _ = trained_net()
    with torch.no_grad():
        before = net(X)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    report = separate(net, SeparateConfig(rank=99, order=order, measure_layers=False))
    assert [layer.name for layer in report.separated] == ["body.0", "down.0", "dilated"]
    with torch.no_grad():
        torch.testing.assert_close(net(X), before, rtol=1e-4, atol=1e-5)
    assert report.output_error < 1e-5
    changed = ("body.0.", "down.0.", "dilated.")
    for name, value in net.state_dict().items():
        if not name.startswith(changed):
            assert torch.equal(value, kept.pop(name))
    assert all(name.startswith(changed) for name in kept)
    assert dwsep.merge_(net) == ("body.0", "down.0", "dilated")
    with torch.no_grad():
        torch.testing.assert_close(net(X), before, rtol=1e-4, atol=1e-5)
    assert list(net.state_dict()) == list(Net().state_dict())
    assert type(net.dilated) is nn.Conv2d


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_the_root_itself(order):
    conv = nn.Conv2d(8, 12, 3, padding=1)
    x = torch.randn(2, 8, 7, 7)
    before = conv(x)
    report = separate(conv, SeparateConfig(rank=99, order=order), x)
    assert report.layers[0].name == ""
    assert "(the model)" in str(report)
    assert not isinstance(conv, nn.Conv2d)
    torch.testing.assert_close(conv(x), before, rtol=1e-4, atol=1e-5)
    assert dwsep.merge_(conv) == ("",)
    assert type(conv) is nn.Conv2d


def test_a_module_in_two_places_stays_one():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.ModuleDict({"a": nn.Sequential(conv, nn.ReLU()), "b": conv})
    net.forward = lambda x: net["b"](net["a"](x))  # type: ignore[method-assign]
    x = torch.randn(1, 8, 9, 9)
    before = net(x)
    report = separate(net, x=x)
    assert net["a"][0] is net["b"] is conv
    assert [layer.name for layer in report.separated] == ["a.0"]
    assert report.separated[0].macs_before == 2 * 81 * 9 * 64
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


def test_a_weight_in_two_modules_is_left_alone():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    net[1].weight = net[0].weight
    report = separate(net, x=torch.randn(1, 8, 9, 9))
    assert [layer.reason for layer in report.left_dense] == [
        "its weight is that of 1, too",
        "its weight is that of 0, too",
    ]
    assert report.separated == ()


def test_hooks_attributes_modes_and_references_stay():
    net, _ = trained_net()
    net.train()
    net.dilated.eval()
    net.dilated.note = "mine"
    seen, held = [], [net.dilated]
    handle = net.dilated.register_forward_hook(lambda module, args, out: seen.append(module))
    modes = {name: module.training for name, module in net.named_modules()}
    separate(net)
    assert held[0] is net.dilated
    assert isinstance(held[0], dwsep.nn.DepthwiseSeparableConv2d)
    assert net.dilated.note == "mine"
    seen.clear()
    net(X)
    assert seen == [net.dilated]
    handle.remove()
    net(X)
    assert len(seen) == 1
    assert {name: net.get_submodule(name).training for name in modes} == modes
    assert not net.dilated.depthwise.training
    assert net.down[0].depthwise.training


def test_copies_pickles_and_state_dicts_work():
    net, data = trained_net()
    separate(net, SeparateConfig(macs=0.6, measure_layers=False), calibration=data)
    with torch.no_grad():
        wanted = net(X)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(X), wanted)
        fresh = Net().eval()
        dwsep.convert.restructure_(fresh, dwsep.convert.structure_of(net))
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(fresh(X), wanted)


def test_a_network_separated_twice_is_saved_whole(tmp_path):
    net, data = trained_net()
    for name in ("down", "dilated"):
        separate(net, SeparateConfig(rank=2, include=name, measure_layers=False), calibration=data)
    assert list(dwsep.convert.structure_of(net)) == ["down.0", "dilated"]
    dwsep.convert.save(tmp_path / "net.safetensors", net, metadata={"note": "mine"})
    fresh = Net().eval()
    assert dwsep.convert.load_(fresh, tmp_path / "net.safetensors")["note"] == "mine"
    with torch.no_grad():
        assert torch.equal(fresh(X), net(X))
    with pytest.raises(ValueError, match="model has no layer that separate_ changed"):
        dwsep.convert.save(tmp_path / "net.safetensors", Net())
    with pytest.raises(ValueError, match="does not fit the model: structure: the model has no dense convolution"):
        dwsep.convert.load_(fresh, tmp_path / "net.safetensors")  # separated already


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_optimizers_go_on_with_the_new_parameters(order):
    net, _ = trained_net()
    net.train()
    decayed = [net.down[0].weight, net.dilated.weight]
    rest = [p for p in net.parameters() if not any(p is other for other in decayed)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest}], lr=1e-3)
    net(X).square().sum().backward()
    optimizer.step()
    bias = net.dilated.bias
    separate(net, SeparateConfig(rank=2, order=order, measure_layers=False), optimizers=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}
    assert len(held) == len(list(net.parameters()))
    assert len(optimizer.param_groups[0]["params"]) == 4
    assert any(p is bias for p in net.parameters())
    assert bias in optimizer.state  # kept, and with it its moments
    assert all(any(p is other for other in held) for p in optimizer.state)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    net(X).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    dwsep.merge_(net, optimizers=[optimizer])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}
    assert len(held) == len(list(net.parameters()))


def test_accelerated_models_are_refused():
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
    )
    dwsep.accelerate_(net)
    for call in (lambda: separate(net, x=torch.ones(1, 8, 9, 9)), lambda: dwsep.merge_(net)):
        with pytest.raises(ValueError, match=r"call dwsep.revert_\(model\) before"):
            call()


def test_separated_networks_accelerate():
    net, data = trained_net()
    separate(net, SeparateConfig(rank=2, measure_layers=False), calibration=data)
    with torch.no_grad():
        wanted = net(X)
        dwsep.accelerate_(net)
        torch.testing.assert_close(net(X), wanted, rtol=1e-4, atol=1e-5)
