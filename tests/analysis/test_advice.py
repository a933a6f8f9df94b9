"""Advice stands where its experiment confirms it, with the figures of the experiment."""

import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis import _advice
from tests.analysis.toys import network

pytestmark = pytest.mark.usefixtures("own_ceilings")


def advice_of(model, x, name, **options):
    report = dwsep.analyze(model, x, seconds=0, **options)
    return report, next(row for row in report.rows if row.name == name)


def test_advice_names_an_unfolded_norm_with_its_figures():
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)).eval()
    report, row = advice_of(model, torch.randn(1, 3, 64, 64), "1")
    assert row.advice == (
        f"the norm takes {1e3 * row.latency.median:.3g} ms of its own and moves {row.bytes / 1e6:.3g} MB: folded into "
        "the convolution before it (dwsep.accelerate_) it takes neither",
    )
    assert str(row.advice[0]) in " ".join(str(report).split())
    _, row = advice_of(model.train(), torch.randn(1, 3, 64, 64), "1", training=True)
    assert row.advice == ()  # in training no norm can be folded


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 24, 3), nn.GroupNorm(2, 24)),
        (nn.Conv2d(3, 24, 3), nn.InstanceNorm2d(24)),
        (nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24, track_running_stats=False)),
        (nn.Conv2d(3, 24, 3), nn.ReLU(), nn.BatchNorm2d(24)),
    ],
    ids=["group", "instance", "no statistics", "behind an activation"],
)
def test_no_advice_to_fold_what_no_convolution_can_take_in(layers):
    report = dwsep.analyze(nn.Sequential(*layers).eval(), torch.randn(1, 3, 32, 32), seconds=0)
    norm = next(row for row in report.rows if row.kind == "norm")
    assert norm.advice == ()


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
    x = torch.randn(1, conv.in_channels, 20, 20)
    monkeypatch.setattr(_advice, "_conv_seconds", seconds)
    assert advice_of(nn.Sequential(conv), x, "0")[1].advice == (text,)
    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e-3)  # the other way is no faster
    assert advice_of(nn.Sequential(conv), x, "0")[1].advice == ()


def test_advice_compares_a_separable_pair_with_the_dense_convolution(monkeypatch):
    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e-9)
    report, row = advice_of(network().eval(), torch.randn(1, 3, 32, 32), "1.body.0")
    (promise,) = report.promises
    assert promise.name == "1.body.0"
    pair = [row for row in report.rows if row.name in ("1.body.0", "1.body.1", "1.body.2", "1.body.3", "1.body.4")]
    assert promise.seconds <= sum(row.latency.median for row in pair)
    assert row.advice[-1] == (
        f"with its pointwise partner and what lies between them it takes {1e3 * promise.seconds:.3g} ms, where the "
        f"dense convolution in their place takes 1e-06 ms for {promise.reduction:.1f} times the macs"
    )
    monkeypatch.setattr(_advice, "_conv_seconds", lambda *arguments: 1e3)
    report, row = advice_of(network().eval(), torch.randn(1, 3, 32, 32), "1.body.0")
    assert report.promises[0].speedup > 1
    assert not [text for text in row.advice if "the dense convolution" in text]
