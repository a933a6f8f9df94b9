"""``dwsep.analyze`` as a whole: every layer once, whatever runs, and nothing of the model changed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis.cost import analyse
from tests.analysis.toys import names, network

pytestmark = pytest.mark.usefixtures("own_ceilings")


def test_analyze_names_every_layer_and_every_operator_between_them():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    body = [f"1.body.{index}" for index in range(5)]
    assert names(report) == ["0", *body, "1:add", "1:relu", "2", "4"]
    kinds = ["dense", "depthwise", "norm", "activation", "pointwise", "norm", "elementwise", "activation", "pooling"]
    assert [row.kind for row in report.rows] == [*kinds, "linear"]
    assert report.macs == 2 * (256 * (16 * 27 + 16 * 9 + 16 * 16) + 16 * 4)


def test_analyze_on_meta_equals_analyze_on_data():
    model, x = network(), torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(analyse(model, x).layers, analyse(network().to("meta"), x.to("meta")).layers, strict=True):
        # on meta, a norm in evaluation also returns the statistics which it does not compute on a CPU
        assert replace(ours, bytes_written=0) == replace(theirs, bytes_written=0)
        assert abs(ours.bytes_written - theirs.bytes_written) <= 2 * 4 * 16
    on_data, on_meta = analyse(model, x, training=True), analyse(network().to("meta"), x.to("meta"), training=True)
    for ours, theirs in zip(on_data.layers, on_meta.layers, strict=True):
        assert (ours.name, ours.training_macs) == (theirs.name, theirs.training_macs)
    for figure in ("saved_bytes", "saved_bytes_fused"):
        assert sum(getattr(layer, figure) for layer in on_data.layers) == sum(
            getattr(layer, figure) for layer in on_meta.layers
        )


@pytest.mark.parametrize("training", [False, True])
def test_analyze_leaves_the_model_as_it_was(training):
    model = network()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    dwsep.analyze(model, x, training=training, seconds=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(parameter.grad is None for parameter in model[1].parameters())
    assert [model.training, model[1].training] == [True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((nn.ReLU(), "x"), {}, TypeError, "example_inputs must be a tensor"),
        ((len, torch.ones(1)), {}, TypeError, "model must be a torch.nn.Module"),
        ((nn.ReLU(), torch.ones(1, device="meta")), {}, ValueError, "latency must be False for tensors on 'meta'"),
        ((nn.Linear(1, 1), torch.ones(1, device="meta")), {"latency": False}, ValueError, "got cpu and meta"),
        ((nn.ReLU(), torch.ones(1)), {"seconds": "4"}, TypeError, "seconds must be a number, got '4' of type str"),
        ((nn.ReLU(), torch.ones(1)), {"seconds": -1}, ValueError, "seconds must not be negative, got -1"),
        ((nn.ReLU(), torch.ones(1)), {"training": True}, ValueError, "model must return something that depends on"),
    ],
)
def test_analyze_refuses_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        dwsep.analyze(*arguments, **options)
