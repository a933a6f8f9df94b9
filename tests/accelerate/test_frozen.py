"""Frozen inference: what no longer counts, and what still does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from tests.accelerate.toys import Net, distance, program_runs, randomise


@pytest.fixture(name="nets")
def _nets():
    """One frozen after a first inference, and the same without any of this."""
    plain = randomise(Net(gate=True)).eval()
    net = copy.deepcopy(plain)
    dwsep.accelerate_(net, frozen=True)
    with torch.no_grad():
        net(torch.randn(1, 3, 20, 24))
    return net, plain


@pytest.fixture(name="x")
def _x():
    return torch.randn(2, 3, 20, 24)


def _same(net, plain, x):
    with torch.no_grad():
        return distance(net(x), plain(x)) < 1e-5


def _double_first_weight(net):
    with torch.no_grad():
        next(net.parameters()).mul_(2.0)


def test_frozen_matches_eager_at_every_shape(nets, x):
    net, plain = nets
    for size in ((20, 24), (7, 9), (20, 24)):
        assert _same(net, plain, x[..., : size[0], : size[1]])
    assert program_runs(net)


def test_a_change_is_seen_by_another_acceleration_only(nets, x):
    net, plain = nets
    before = plain(x).detach()
    _double_first_weight(net)
    _double_first_weight(plain)
    with torch.no_grad():
        assert distance(net(x), before) < 1e-5
    assert not _same(net, plain, x)
    dwsep.accelerate_(net, frozen=True)
    assert _same(net, plain, x)


def test_what_is_not_frozen_sees_changes(x):
    plain = randomise(Net(gate=True)).eval()
    net = copy.deepcopy(plain)
    dwsep.accelerate_(net)
    assert _same(net, plain, x)
    _double_first_weight(net)
    _double_first_weight(plain)
    assert _same(net, plain, x)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_and_training_see_changes(nets, x, training):
    net, plain = nets
    for model in nets:
        _double_first_weight(model)
        model.train(training)
    assert distance(net(x), plain(x)) < 1e-5
    for model in nets:
        model(x).square().sum().backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in nets)
    assert distance(ours, theirs) < 1e-4
    if training:
        with torch.no_grad():
            assert distance(net(x), plain(x)) < 1e-5


def test_nothing_is_kept_of_training_mode_or_of_gradients(x):
    plain = randomise(Net()).eval()
    net = copy.deepcopy(plain)
    dwsep.accelerate_(net, frozen=True)
    net(x)
    net.train()
    with torch.no_grad():
        net(x)
    net.eval()
    plain.load_state_dict(net.state_dict())
    assert _same(net, plain, x)


def test_copies_freeze_anew(nets, x):
    net, plain = nets
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        _double_first_weight(other)
        changed = copy.deepcopy(plain)
        _double_first_weight(changed)
        assert _same(other, changed, x)
        _double_first_weight(other)
        assert _same(other, changed, x)


def test_other_channels_are_left_to_the_module(nets):
    net, plain = nets
    with pytest.raises(RuntimeError, match="channels"), torch.no_grad():
        net(torch.randn(2, 4, 20, 24))
    assert _same(net, plain, torch.randn(1, 3, 20, 24))


def test_another_dtype_is_left_to_the_module(nets, x):
    net, _ = nets
    with torch.no_grad():
        assert net.double()(x.double()).dtype is torch.float64


def test_frozen_must_be_a_bool():
    with pytest.raises(TypeError, match="frozen must be True or False, got 1"):
        dwsep.accelerate_(nn.Sequential(), frozen=1)


@pytest.fixture(name="whole")
def _whole(nets):
    """A frozen network that is one program by now, for inputs (1, 3, 20, 24), and the same as torch runs it."""
    net, plain = nets
    with torch.no_grad():
        net(torch.randn(1, 3, 20, 24))
    assert list(net.__dict__["forward"].kept[1].wholes) == [(1, 3, 20, 24)]
    return net, plain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_program_takes_either_layout(whole, layout):
    net, plain = whole
    x = torch.randn(1, 3, 20, 24).to(memory_format=layout)
    assert _same(net, plain, x)
    assert _same(net, plain, x.transpose(2, 3).contiguous().transpose(2, 3))


def test_one_program_takes_no_sparse_input(whole):
    net, _ = whole
    with pytest.raises((RuntimeError, NotImplementedError)), torch.no_grad():
        net(torch.randn(1, 3, 20, 24).to_sparse())


def test_whoever_watches_a_call_sees_the_modules_run(whole):
    net, plain = whole
    x = torch.randn(1, 3, 20, 24)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            net(x)
    finally:
        handle.remove()
    assert len(seen) > 2
    with torch.no_grad():
        expected = plain(x)
        assert distance(torch.vmap(net)(x[None])[0], expected) < 1e-5
        with pytest.warns(FutureWarning, match="deprecated"):
            traced = torch.jit.trace(net, x, check_trace=False)
        assert distance(traced(x), expected) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype is torch.bfloat16


def test_gradients_are_wanted_in_spite_of_one_program(whole):
    net, _ = whole
    x = torch.randn(1, 3, 20, 24, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None


def test_programs_are_kept_of_the_last_shapes_alone(whole):
    net, plain = whole
    for width in range(9, 20):
        assert _same(net, plain, torch.randn(1, 3, 20, width))
    plan = net.__dict__["forward"].kept[1]
    assert list(plan.wholes) == list(plan.lowered)
    assert len(plan.wholes) < 11
