import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis.cost import analyse


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip

    def forward(self, x):
        return torch.relu(x + self.body(x))


def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")  # this machine's ceilings are measured once for all tests


@pytest.fixture(autouse=True)
def _cache(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def names(report):
    return [row.name for row in report.rows]


def test_analyze_names_every_layer_and_every_operator_between_them():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    body = [f"1.body.{index}" for index in range(5)]
    assert names(report) == ["0", *body, "1:add", "1:relu", "2", "4"]
    kinds = ["dense", "depthwise", "norm", "activation", "pointwise", "norm", "elementwise", "activation", "pooling"]
    assert [row.kind for row in report.rows] == [*kinds, "linear"]
    assert report.macs == 2 * (256 * (16 * 27 + 16 * 9 + 16 * 16) + 16 * 4)


def test_analyze_counts_bytes_of_every_layer_once():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    rows = {row.name: row for row in report.rows}
    values = 2 * 16 * 256
    assert rows["0"].bytes == 4 * (2 * 3 * 1024 + 16 * 27 + 16 + values)
    assert rows["1.body.0"].bytes == 4 * (2 * values + 16 * 9)
    assert rows["1:add"].bytes == 4 * 3 * values
    assert rows["1.body.2"].bytes == 4 * 2 * values


def test_analyze_gives_the_dense_twin_and_the_receptive_field():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    rows = {row.name: row for row in report.rows}
    twin = next(layer.dense_twin for layer in report.layers if layer.name == "1.body.0")
    assert (twin.pointwise, twin.macs, twin.parameters) == ("1.body.3", 2 * 256 * 16 * 16 * 9, 16 * 16 * 9)
    assert rows["1.body.0"].reduction == pytest.approx(16 * 16 * 9 / (16 * 9 + 16 * 16))
    assert (rows["0"].receptive_field, rows["1.body.0"].receptive_field) == ((3, 3), (7, 7))
    assert rows["2"].receptive_field == (7 + 15 * 2, 7 + 15 * 2)
    assert report.dense_macs == report.macs + 2 * 256 * (16 * 16 * 9 - 16 * 9 - 16 * 16)


def test_receptive_field_of_transposed_dilated_and_pooled():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, dilation=4, padding=4), nn.ConvTranspose2d(1, 1, 2, 2))
    fields = [layer.receptive_field for layer in analyse(model, torch.randn(1, 1, 32, 32)).layers]
    assert fields == [(2, 2), (18, 18), (18, 18)]


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


def test_analyze_of_a_training_step_counts_its_backward_and_what_it_saves():
    report = dwsep.analyze(network().train(), torch.randn(2, 3, 32, 32), latency=False, training=True)
    rows = {row.name: row for row in report.rows}
    values = 2 * 16 * 256
    assert rows["0"].macs == 2 * 16 * 27 * 2 * 256  # no gradient of the network's input
    assert rows["1.body.0"].macs == 3 * 9 * values
    assert rows["1.body.3"].macs == 3 * 16 * values
    saved = {layer.name: (layer.saved_bytes, layer.saved_bytes_fused) for layer in report.layers}
    assert saved["1.body.0"] == saved["1.body.3"] == (4 * values, 4 * values)  # raw outputs, for the norms
    assert saved["1.body.2"] == (4 * values, 0)  # the activation, for the pointwise layer


@pytest.mark.parametrize("name", ["mobilenetv2_100", "efficientnet_b0"])
def test_saved_bytes_are_those_that_autograd_and_accelerated_stages_hold(name):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    from dwsep.accelerate import _training
    from dwsep.bench.network_problem import saved_bytes

    model, x = timm.create_model(name).train(), torch.randn(2, 3, 64, 64)
    report = dwsep.analyze(model, x, latency=False, training=True)
    assert report.saved_bytes == saved_bytes(model, x)
    dwsep.accelerate_(model)
    if not (dwsep.backends()["cpu"].available and _training.is_available()):
        pytest.skip("the native library is not built")
    assert report.saved_bytes_fused == pytest.approx(saved_bytes(model, x), rel=0.1)


@pytest.mark.parametrize("training", [False, True])
def test_analyze_leaves_the_model_as_it_was(training):
    model = network()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    dwsep.analyze(model, torch.randn(2, 3, 32, 32, generator=torch.Generator()), training=training, seconds=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1].bias is None if hasattr(model[1], "bias") else True
    assert all(parameter.grad is None for parameter in model[1].parameters())
    assert [model.training, model[1].training] == [True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if not training:  # experiments draw numbers
        assert state.shape == torch.get_rng_state().shape


def _timed_network(accelerated: bool) -> tuple[nn.Module, torch.Tensor]:
    start, _, *end = network()
    model = nn.Sequential(start, *(Residual() for _ in range(3)), *end)
    if accelerated:
        dwsep.accelerate_(model)
    return model, torch.randn(4, 3, 160, 160).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_parts_take_every_layer_once(accelerated, training):
    model, x = _timed_network(accelerated)
    report = dwsep.analyze(model.train(training), x, training=training, advice=False, seconds=0)
    assert sorted(name for row in report.rows for name in row.layers) == sorted(layer.name for layer in report.layers)
    assert report.macs == dwsep.analyze(model, x, latency=False, training=training).macs
    assert report.seconds > 0


def check_sum_of_parts(model, x, training):
    sums = []
    for _ in range(6):
        report = dwsep.analyze(model.train(training), x, training=training, advice=False, seconds=0.3)
        sums.append(report.seconds / report.latency.median)
        if 0.85 <= sums[-1] <= 1.15:
            return
    pytest.fail(f"the parts sum up to {sums} of the whole")


@pytest.mark.sweep  # a machine which is busy with something else would decide it
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_parts_sum_up_to_the_whole(accelerated, training):
    check_sum_of_parts(*_timed_network(accelerated), training)


@pytest.mark.sweep
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name",
    ["mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto", "mixnet_s"],
)
def test_parts_of_a_network_sum_up_to_the_whole(name, training, accelerated):
    model = pytest.importorskip("timm", reason="timm is an extra").create_model(name)
    model = model.train(training).to(memory_format=torch.channels_last)
    if accelerated:
        dwsep.accelerate_(model)
    x = torch.randn(4 if training else 1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    check_sum_of_parts(model, x, training)


class Clock:
    """A clock that goes on where a module says so, and nowhere else."""

    def __init__(self):
        self.now = 0.0

    def layer(self, forward, backward):
        clock = self

        class Take(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                clock.now += forward
                return x * 1

            @staticmethod
            def backward(ctx, grad):
                clock.now += backward
                return grad * 1

        return Take.apply


class Slow(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.take = take
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.take(x * self.weight)


class Sum(nn.Module):
    """A layer, and a sum beside it that is in no layer, each with its time."""

    def __init__(self, inner, take, between):
        super().__init__()
        self.inner, self.take, self.between = inner, take, between

    def forward(self, x):
        self.between()
        return self.take(x + self.inner(x))


@pytest.mark.parametrize("training", [False, True])
def test_every_second_is_charged_to_the_part_that_took_it(monkeypatch, training):
    from dwsep.analysis import _timeline

    clock = Clock()
    monkeypatch.setattr(_timeline.Timeline, "now", lambda self: clock.now)

    def waste():
        clock.now += 0.5

    def make(*times):
        return Slow(clock.layer(*times))

    model = nn.Sequential(make(1, 10), Sum(make(2, 20), clock.layer(4, 40), waste), make(8, 80))
    report = dwsep.analyze(model.train(training), torch.ones(2, 3), training=training, seconds=0, advice=False)
    seconds = {}
    for row in report.rows:
        seconds[row.name] = seconds.get(row.name, 0) + row.latency.median
    backward = 10 if training else 0
    assert seconds.pop("0") == 1 + backward
    assert seconds.pop("1.inner") == 2 + 2 * backward
    assert seconds.pop("2") == 8 + 8 * backward
    # the sum's operators, forward and backward, and the half second that was wasted between the layers
    assert sum(seconds.values()) + report.between.median == 4 + 4 * backward + 0.5
    assert report.seconds == report.latency.median == 15.5 + 15 * backward


@pytest.mark.parametrize("training", [False, True])
def test_steps_of_one_call_share_its_time_and_no_more(training):
    from dwsep.analysis import _measure
    from dwsep.analysis._passes import evaluating, training_step
    from dwsep.analysis._timeline import Timeline
    from dwsep.analysis._units import units_of

    if not dwsep.backends()["cpu"].available:
        pytest.skip("the native library is not built")
    model = network().train(training)
    dwsep.accelerate_(model)
    x = torch.randn(2, 3, 32, 32)
    cost = analyse(model, x, training=training)
    with training_step(model) if training else evaluating(model), torch.set_grad_enabled(training):
        timeline = Timeline(model, (x,), training)
        timeline.plain()  # which prepares an inference
        run, steps = (timeline.timed(steps=each) for each in (False, True))
        assert len(run.marks) < len(steps.marks)
    units = units_of(cost, run, steps, timeline.parts)
    ratio = _measure._divide(units, [run], [steps])
    assert ratio > 0
    own = [unit for unit in units if unit.mark is not None]
    for place, mark in enumerate(run.marks):
        shares = [unit.share for unit in own if unit.place == place]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
        assert mark.end >= mark.begin
    gaps = sum(run.gap(number) for number in range(len(run.marks) + 1))
    assert sum(unit.seconds(run) for unit in own) + gaps == pytest.approx(run.total)


def test_analyze_shows_an_accelerated_network_stage_by_stage():
    model = network().eval()
    dwsep.accelerate_(model)
    if not dwsep.backends()["cpu"].available:
        pytest.skip("the native library is not built")
    forward = model.__dict__["forward"]
    report = dwsep.analyze(model, torch.randn(2, 3, 32, 32), seconds=0, advice=False)
    fused = next(row for row in report.rows if "1.body.0" in row.layers)
    assert fused.fused
    assert fused.kind == "separable"
    assert {"1.body.0", "1.body.1", "1.body.2", "1.body.3", "1.body.4"} <= set(fused.layers)
    values = 2 * 16 * 256
    assert fused.bytes <= 4 * (3 * values) + 4 * (16 * 9 + 16 * 16 + 64)
    assert len(report.rows) < len(report.layers)
    assert model.__dict__["forward"] is forward


def test_a_norm_that_others_load_moves_no_result_of_its_own():
    if not dwsep.backends()["cpu"].available:
        pytest.skip("the native library is not built")
    start, residual, *_ = network()
    model = nn.Sequential(start, nn.BatchNorm2d(16), nn.ReLU(), residual)
    dwsep.accelerate_(model)
    report = dwsep.analyze(model, torch.randn(2, 3, 32, 32), training=True, seconds=0, advice=False)
    row = next(row for row in report.rows if "1" in row.layers)
    assert (row.kind, row.layers) == ("norm + activation", ("1", "2"))
    values = 2 * 16 * 256
    assert row.bytes == 4 * (4 * values + 3 * 32)  # its input for the sums; input and gradient, and its own gradient


def test_analyze_times_a_separable_layer_as_one():
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 16, norm="batch", activation="relu")
    report = dwsep.analyze(nn.Sequential(layer, nn.ReLU()), torch.randn(1, 8, 12, 12), seconds=0, advice=False)
    assert [row.fused for row in report.rows] == [True, False]
    assert report.rows[0].layers == ("0.depthwise", "0.pointwise", "0.norm", "0.activation")
    assert report.rows[0].bytes < sum(layer.bytes for layer in report.layers[:-1])


def test_floor_is_what_the_ceilings_say():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), seconds=0, advice=False)
    row = report.rows[0]
    assert row.floor == report.ceilings.floor_seconds(row.macs, row.bytes)
    assert row.bound in ("arithmetic", "memory")
    assert row.share == row.floor / row.latency.median


def test_report_as_table_data_and_notebook():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), seconds=0)
    text = str(report)
    assert all(name in text for name in names(report))
    assert "sum of the lines" in text
    assert "whole network measured apart" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["totals"]["macs"] == report.macs
    assert [row["name"] for row in data["rows"]] == names(report)
    assert report._repr_html_().count("<tr>") == len(report.rows) + 3  # a head, what lies between, and the sum
    blocks = report.table(sort="order", depth=1, most=3)
    assert [*blocks.columns[0].cells] == ["0", "1", "2", "1 more", "between the layers"]
    assert report.seconds == report.between.median + sum(row.latency.median for row in report.rows)
    assert data["totals"]["seconds_of_parts"] == report.seconds


def test_to_pandas_has_a_line_for_each_row_or_names_what_is_missing(monkeypatch):
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_pandas()


def advice_of(model, x, name, **options):
    report = dwsep.analyze(model, x, seconds=0, **options)
    return report, next(row for row in report.rows if row.name == name)


def test_advice_names_an_unfolded_norm_with_its_figures():
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)).eval()
    report, row = advice_of(model, torch.randn(1, 3, 64, 64), "1")
    assert row.advice == (
        f"the norm takes {1e3 * row.latency.median:.3g} ms of its own and moves {row.bytes / 1e6:.1f} MB: folded into "
        "the convolution before it (dwsep.accelerate_) it takes neither",
    )
    assert str(row.advice[0]) in " ".join(str(report).split())
    _, row = advice_of(model.train(), torch.randn(1, 3, 64, 64), "1", training=True)
    assert row.advice == ()  # in training no norm can be folded


def _dilated(layer, weight, training, channels_last):
    return 3e-3 if max(layer.dilation) > 1 else 1e-3


def _wide(layer, weight, training, channels_last):
    return 3e-3 if layer.input_shape[1] % 8 else 1e-3


def _in_nchw(layer, weight, training, channels_last):
    return 1e-3 if channels_last else 3e-3


@pytest.mark.parametrize(
    ("conv", "seconds", "text"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), _in_nchw, "in NCHW it takes 3 ms alone, in channels last 1 ms"),
        (
            nn.Conv2d(16, 16, 3, padding=4, dilation=4, groups=16),
            _dilated,
            "dilation 4 takes 3 ms alone, dilation 1 1 ms: a slow path",
        ),
        (nn.Conv2d(13, 20, 1), _wide, "13 -> 20 channels take 3 ms alone, 16 -> 32 only 1 ms"),
    ],
    ids=["layout", "dilation", "channels"],
)
def test_advice_gives_the_figures_of_its_experiment(monkeypatch, conv, seconds, text):
    from dwsep.analysis import _advice

    x = torch.randn(1, conv.in_channels, 20, 20)
    monkeypatch.setattr(_advice, "_conv_seconds", seconds)
    assert advice_of(nn.Sequential(conv), x, "0")[1].advice == (text,)
    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e-3)  # the other way is no faster
    assert advice_of(nn.Sequential(conv), x, "0")[1].advice == ()


def test_advice_compares_a_separable_pair_with_the_dense_convolution(monkeypatch):
    from dwsep.analysis import _advice

    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e-9)
    report, row = advice_of(network().eval(), torch.randn(1, 3, 32, 32), "1.body.0")
    (promise,) = report.promises
    assert promise.name == "1.body.0"
    pair = [row for row in report.rows if row.name in ("1.body.0", "1.body.1", "1.body.2", "1.body.3", "1.body.4")]
    assert promise.seconds <= sum(row.latency.median for row in pair)
    assert row.advice[-1] == (
        f"it does {promise.reduction:.1f} times fewer multiply-adds than a dense convolution, yet takes "
        f"{1e3 * promise.seconds:.3g} ms with what lies between its factors, where that takes 1e-06 ms"
    )
    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e3)
    report, row = advice_of(network().eval(), torch.randn(1, 3, 32, 32), "1.body.0")
    assert report.promises[0].speedup > 1
    assert not [text for text in row.advice if "fewer multiply-adds" in text]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((nn.ReLU(), "x"), {}, TypeError, "example_inputs must be a tensor"),
        ((len, torch.ones(1)), {}, TypeError, "model must be a torch.nn.Module"),
        ((nn.ReLU(), torch.ones(1, device="meta")), {}, ValueError, "latency must be False for tensors on 'meta'"),
        ((nn.ReLU(), torch.ones(1)), {"seconds": -1}, ValueError, "seconds must not be negative, got -1"),
        ((nn.ReLU(), torch.ones(1)), {"training": True}, ValueError, "model must return something that depends on"),
    ],
)
def test_analyze_refuses_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        dwsep.analyze(*arguments, **options)


def test_report_refuses_bad_arguments(tmp_path):
    report = dwsep.analyze(nn.ReLU(), torch.ones(1), latency=False)
    with pytest.raises(ValueError, match="sort: unknown name 'size'"):
        report.table(sort="size")
    with pytest.raises(ValueError, match=r"path must end in \.html or \.json"):
        report.save(tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []
