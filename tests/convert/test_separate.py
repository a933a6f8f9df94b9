"""``separate_``: budgets are kept, ranks are chosen well, and the report says what happened."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import dwsep
from dwsep import SeparateConfig
from dwsep.analysis import count
from tests.convert.toys import Net, images, trained_net

X = images(1, 3, 14, seed=7)


def separate(model, data=None, **options):
    options.setdefault("measure_layers", False)
    return dwsep.separate_(model, SeparateConfig(**options), example_inputs=X, calibration=data)


def error_of(net, dense, x):
    with torch.no_grad():
        return float((net(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("share", [0.75, 0.5, 0.42])
@pytest.mark.parametrize("order", ["auto", "pointwise_first"])
def test_macs_budget_is_kept(share, order):
    net, data = trained_net()
    before = count(net, X).macs
    report = separate(net, data, macs=share, order=order)
    assert report.macs_before == before
    assert report.macs_after == count(net, X).macs <= share * before
    assert report.macs_after > 0.8 * share * before  # used up, as far as whole ranks can
    assert report.macs_before - report.macs_after == sum(x.macs_before - x.macs_after for x in report.separated)
    as_count, data = trained_net()
    assert separate(as_count, data, macs=int(share * before), order=order).macs_after == report.macs_after


def test_smaller_budgets_lose_more():
    errors = []
    for share in (0.8, 0.6, 0.45):
        net, data = trained_net()
        errors.append(separate(net, data, macs=share).output_error)
    assert errors == sorted(errors)


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.15])
def test_error_budget_is_kept(budget):
    net, data = trained_net()
    dense = copy.deepcopy(net)
    report = separate(net, data, error=budget)
    assert report.separated
    assert report.output_error <= budget * 1.001
    assert report.output_error > 0.4 * budget
    assert error_of(net, dense, torch.cat(data)) == pytest.approx(report.output_error, rel=1e-3)


def test_error_budget_that_nothing_keeps_leaves_all_dense():
    net, data = trained_net()
    report = separate(net, data, error=1e-6)
    assert report.separated == ()
    assert {layer.reason for layer in report.left_dense} >= {"no rank keeps the error budget"}
    assert report.macs_before == report.macs_after


def test_calibration_beats_weights_alone_on_data_held_out():
    held = images(16, 3, 14, seed=50)
    plain, _ = trained_net()
    fitted, data = trained_net()
    dense = copy.deepcopy(plain)
    separate(plain, rank=1)
    separate(fitted, data, rank=1)
    assert error_of(fitted, dense, held) < 0.6 * error_of(plain, dense, held)


def test_every_layers_output_error_is_measured():
    net, data = trained_net()
    dense = copy.deepcopy(net)
    report = separate(net, data, rank=2)
    assert all(0 < layer.weight_error < 1 for layer in report.separated)
    line = next(layer for layer in report.separated if layer.name == "down.0")
    # its input is that of the dense network: the layers before it are put back
    inputs = []
    handle = dense.down[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in data:
            dense(batch)
        handle.remove()
        wanted, made = (layer(torch.cat(inputs)) for layer in (dense.down[0], net.down[0]))
    lost = (made - wanted) - (made - wanted).mean((0, 2, 3), keepdim=True)
    spread = wanted - wanted.mean((0, 2, 3), keepdim=True)
    assert float(lost.norm() / spread.norm()) == pytest.approx(line.output_error, rel=0.05)


def test_knapsack_beats_one_rank_for_all():
    for seed in range(3):
        for rank in (1, 2, 3):
            uniform, data = trained_net(seed)
            one = separate(uniform, data, rank=rank)
            mixed, data = trained_net(seed)
            report = separate(mixed, data, macs=one.macs_after)
            assert report.macs_after <= one.macs_after
            assert report.output_error <= one.output_error * 1.02


def test_norms_are_corrected_where_something_changed_and_there_alone():
    net, data = trained_net()
    net.down[1].running_mean += 0.125  # not what these data give: the training data were others
    kept = copy.deepcopy(net)
    separate(net, data, rank=1)
    assert torch.equal(net.stem[1].running_mean, kept.stem[1].running_mean)
    assert torch.equal(net.stem[1].running_var, kept.stem[1].running_var)
    assert net.stem[1].momentum == kept.stem[1].momentum
    assert torch.equal(net.down[1].num_batches_tracked, kept.down[1].num_batches_tracked)
    moved = {}
    for model in (kept, net):
        model.down[1].register_forward_pre_hook(
            lambda module, args, model=model: moved.setdefault(model, []).append(args[0])
        )
        with torch.no_grad():
            for batch in data:
                model(batch)
    before, after = torch.cat(moved[kept]), torch.cat(moved[net])
    shift = net.down[1].running_mean - kept.down[1].running_mean
    wanted = after.mean((0, 2, 3)) - before.mean((0, 2, 3))
    assert (shift - wanted).norm() < 0.15 * wanted.norm()  # of a network whose norm before is in two places
    assert wanted.norm() > 0.3
    assert net.down[1].running_var.sum() < kept.down[1].running_var.sum()  # a part of the output is lost


def test_a_layer_without_bias_or_norm_is_given_a_bias():
    conv = nn.Conv2d(8, 8, 3, bias=False)
    net = nn.Sequential(conv, nn.ReLU())
    x = images(8, 8, 12)
    report = dwsep.separate_(net, SeparateConfig(rank=1, measure_layers=False), example_inputs=x[:1], calibration=x)
    assert report.separated[0].bias
    assert dwsep.convert.structure_of(net)["0"] == {"order": "depthwise_first", "rank": 1, "bias": True}
    assert net[0].pointwise.bias.abs().max() > 0


@pytest.mark.parametrize(
    "channels, out, stride, wanted",
    [(32, 8, 1, "pointwise_first"), (32, 8, 2, "depthwise_first"), (8, 32, 1, "depthwise_first")],
)
def test_the_pointwise_factor_comes_first_where_it_makes_channels_fewer(channels, out, stride, wanted):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(channels, out, 3, stride, 1), images(8, channels, 12)
    made = {}
    for order in ("auto", "depthwise_first"):
        net = nn.Sequential(copy.deepcopy(conv), nn.ReLU())
        config = SeparateConfig(macs=0.45, order=order, measure_layers=False)
        made[order] = dwsep.separate_(net, config, example_inputs=x[:1], calibration=x)
        assert made[order].macs_after <= 0.45 * made[order].macs_before
    assert made["auto"].separated[0].order == wanted
    better = made["auto"].output_error < 0.9 * made["depthwise_first"].output_error
    assert better == (wanted == "pointwise_first")


@pytest.mark.parametrize(
    "options, name, reason",
    [
        ({}, "stem.0", "fewer than 8 channels"),
        ({"min_channels": 20}, "body.0", "fewer than 20 channels"),
        ({}, "grouped", "has 2 groups"),
        ({"include": "down"}, "body.0", "not in include"),
        ({"exclude": r"d.*"}, "dilated", "in exclude"),
    ],
)
def test_reasons_for_layers_left_dense(options, name, reason):
    net, _ = trained_net()
    report = separate(net, rank=2, **options)
    assert (name, reason) in [(layer.name, layer.reason) for layer in report.left_dense]
    assert type(net.get_submodule(name)) is nn.Conv2d


def test_layers_that_are_not_called_or_do_not_pay():
    net, _ = trained_net()
    net.spare = nn.Conv2d(16, 16, 3)
    net.down[0] = nn.Conv2d(16, 24, (1, 2), (2, 2))  # two taps of its own: a rank does no fewer macs
    net.down[0].name = "mine"
    report = separate(net, macs=0.9)
    reasons = {layer.name: layer.reason for layer in report.left_dense}
    assert reasons["spare"] == "the network did not call it"
    wide = nn.Sequential(nn.Conv2d(8, 8, (1, 2)))
    report = dwsep.separate_(
        wide,
        SeparateConfig(macs=0.99, measure_layers=False, max_rank=1, min_channels=1),
        example_inputs=torch.ones(1, 8, 4, 4),
    )
    assert len(report.layers) == 1


def test_filter_is_asked_and_covers_what_is_inside():
    net, _ = trained_net()
    report = dwsep.separate_(
        net,
        SeparateConfig(rank=2, measure_layers=False),
        example_inputs=X,
        filter_fn=lambda name, module: name != "down",
    )
    assert ("down.0", "filter_fn returned False") in [(layer.name, layer.reason) for layer in report.left_dense]


def test_include_and_exclude_narrow_each_other():
    net, _ = trained_net()
    report = separate(net, rank=2, include=["down", "dilated"], exclude=["dilated"])
    assert [layer.name for layer in report.separated] == ["down.0"]


@pytest.mark.parametrize("kind", ["loader", "generator", "pairs", "tensor"])
def test_kinds_of_calibration_data_give_the_same(kind):
    net, data = trained_net()
    reference = copy.deepcopy(net)
    separate(reference, data, rank=1)
    if kind == "loader":
        calibration = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(data)), batch_size=8)
    elif kind == "generator":
        calibration = (batch for batch in data)
    elif kind == "pairs":
        calibration = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in data]
    else:
        data = [torch.cat(data)]
        reference, _ = trained_net()
        separate(reference, data, rank=1)
        calibration = data[0]
    separate(net, calibration, rank=1)
    for a, b in zip(net.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_moments_in_groups_give_the_same(monkeypatch):
    whole, data = trained_net()
    pieces = copy.deepcopy(whole)
    separate(whole, data, macs=0.5)
    monkeypatch.setattr("dwsep.convert._store.MomentStore.__init__.__defaults__", (1,))
    separate(pieces, data, macs=0.5)
    for a, b in zip(whole.state_dict().values(), pieces.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_several_inputs_and_nested_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, a, b):
            return {"sum": [self.conv(a + b)], "first": (a, 3)}

    a, b = torch.randn(2, 8, 9, 9), torch.randn(2, 8, 9, 9)
    report = dwsep.separate_(
        Two(), SeparateConfig(macs=0.5, measure_layers=False), example_inputs=(a, b), calibration=[(a, b, "label")]
    )
    assert 0 < report.output_error < 1


def test_nothing_changes_when_a_budget_cannot_be_met():
    net, data = trained_net()
    kept = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"macs cannot be met: .* \(a share of 0\.[0-9]+\) is the least"):
        separate(net, data, macs=0.01)
    assert list(kept) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), net.state_dict().values()))
    assert not any(h for m in net.modules() for h in (m._forward_hooks, m._forward_pre_hooks))


@pytest.mark.parametrize(
    "budget, message",
    [
        ({"macs": 0.9}, r"macs cannot be met: 25\.2 k wanted, and no layer of the model, which does 28 k, does fewer"),
        ({"macs": 5000}, r"macs cannot be met: 5 k wanted"),
        ({"latency": 0.9}, r"latency=0\.9 cannot be met: no layer of the model is faster"),
        ({"latency_seconds": 1e-9}, r"latency_seconds=1e-09 \(1e-06 ms\) cannot be met: the model takes"),
    ],
)
def test_a_budget_is_refused_where_no_layer_may_become_separable(budget, message):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    x = torch.randn(1, 3, 12, 12)
    with pytest.raises(ValueError, match=message):
        dwsep.separate_(net, SeparateConfig(**budget), example_inputs=x)


@pytest.mark.parametrize(
    "budget", [{"macs": 1.0}, {"macs": 1e9}, {"error": 0.1}, {"latency_seconds": 1e3}, {"rank": 1}]
)
def test_a_budget_that_the_dense_network_keeps_is_kept_where_no_layer_may_become_separable(budget):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    config = SeparateConfig(**budget, measure_layers=False)
    assert dwsep.separate_(net, config, example_inputs=torch.randn(1, 3, 12, 12)).separated == ()


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_latency_budget_with_a_clock_of_our_own(share, monkeypatch):
    """Every layer and the network take what a made-up rule says: a tenth slower in the network than alone."""

    def alone(conv, macs):
        return macs * 1e-9 * (3 if conv.dilation != (1, 1) else 1)  # slower a multiply-add than the others

    def seconds(self, conv, calls, option):
        from dwsep.convert._options import Layer
        from dwsep.convert._runs import Seen

        layer = Layer("", conv, Seen(calls))
        layer.count_macs(("depthwise_first", "pointwise_first"))
        return alone(conv, layer.macs[option])

    def timed(self, choice):
        dense = sum(1.1 * layer.seconds[None] for layer in choice)
        return 2e-4 + dense, 2e-4 + sum(1.1 * layer.seconds[form] for layer, form in choice.items())

    monkeypatch.setattr("dwsep.convert._options.Clock.seconds", seconds)
    monkeypatch.setattr("dwsep.convert._job.Job._timed", timed)
    made = {}
    monkeypatch.setattr(
        "dwsep.convert._job.Job.commit",
        lambda self, choice, lines, optimizers: made.update(choice=choice, job=self),
    )
    net, data = trained_net()
    separate(net, data, latency=share)
    dense, separable = timed(None, made["choice"])
    assert 0.85 * share <= separable / dense <= share
    net, data = trained_net()
    separate(net, data, latency_seconds=share * dense)
    assert 0.85 * share * dense <= timed(None, made["choice"])[1] <= share * dense
    net, data = trained_net()
    with pytest.raises(ValueError, match=r"latency=0\.05 cannot be met: .* takes 0\.[0-9]+ of the dense network"):
        separate(net, data, latency=0.05)
    with pytest.raises(ValueError, match=r"latency_seconds=1e-05 \(0\.01 ms\) cannot be met: .* takes 0\.[0-9]+ ms"):
        separate(net, data, latency_seconds=1e-5)


def test_latency_is_measured_and_reported():
    net, data = trained_net()
    report = separate(net, data, rank=1, measure_layers=True)
    assert all(layer.seconds_before > 0 and layer.seconds_after > 0 for layer in report.separated)
    assert report.seconds_before > 0
    assert report.seconds_after > 0
    assert "ms" in report.summary


def test_progress_is_told():
    net, data = trained_net()
    told = []
    dwsep.separate_(
        net,
        SeparateConfig(macs=0.5, measure_layers=False),
        example_inputs=X,
        calibration=data,
        on_progress=lambda *what: told.append(what),
    )
    for what in ("moments of the inputs", "errors by rank", "sensitivities", "fitting"):
        steps = [(done, total) for text, done, total in told if text == what]
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps][: steps[0][1]] == list(range(1, steps[0][1] + 1))


def test_report_in_every_form():
    net, data = trained_net()
    report = separate(net, data, macs=0.5)
    text, page = str(report), report._repr_html_()
    for layer in report.layers:
        assert layer.name in text
        assert f"<td>{layer.name}</td>" in page
        assert layer.reason in text
    assert text.splitlines()[0] == report.summary
    values = json.loads(json.dumps(report.to_dict()))
    assert values["macs_after"] == report.macs_after
    assert [layer["name"] for layer in values["layers"]] == [layer.name for layer in report.layers]
    from rich.console import Console

    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(report)
    assert "grouped" in console.export_text()


def test_report_as_a_data_frame():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    net, _ = trained_net()
    frame = separate(net, rank=2).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["name"]) == ["stem.0", "body.0", "down.0", "dilated", "grouped"]
    assert frame["rank"].sum() == 6


def test_a_network_without_convolutions():
    net = nn.Sequential(nn.Flatten(), nn.Linear(588, 2))
    report = separate(net, rank=1)
    assert str(report).startswith("0 of 0 convolutions separated")


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"model": 3}, TypeError, r"model must be a torch.nn.Module, got 3 of type int"),
        ({"config": {"rank": 2}}, TypeError, "config must be a dwsep.SeparateConfig"),
        ({"example_inputs": "x"}, TypeError, "example_inputs must be a tensor, or a tuple or list"),
        ({"calibration": 3}, TypeError, "calibration must be None, a tensor or an iterable of batches, got 3"),
        ({"calibration": []}, ValueError, "calibration must have at least one batch"),
        ({"calibration": ["x"]}, TypeError, "calibration: a batch must be a tensor, or a tuple or list of at least 1"),
        ({"filter_fn": 3}, TypeError, "filter_fn must be a function"),
        ({"on_progress": 3}, TypeError, "on_progress must be a function"),
        ({"optimizers": 3}, TypeError, "optimizers must be torch.optim optimizers, got int"),
        ({"config": SeparateConfig(rank=1, include="layer9")}, ValueError, "include: 'layer9' matches no module"),
        ({"config": SeparateConfig(rank=1, exclude="layer9")}, ValueError, "exclude: 'layer9' matches no module"),
        ({"example_inputs": torch.zeros(1, 3, 8, 8), "model": nn.Conv2d(3, 4, 3, bias=False)}, ValueError, "all zero"),
    ],
)
def test_bad_arguments(change, kind, message):
    arguments = {"model": Net(), "config": SeparateConfig(rank=1), "example_inputs": X, **change}
    model, config = arguments.pop("model"), arguments.pop("config")
    with pytest.raises(kind, match=message):
        dwsep.separate_(model, config, **arguments)


def test_merge_takes_modules_alone():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 3"):
        dwsep.merge_(3)
