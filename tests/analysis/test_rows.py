"""The lines of a report: what runs as one, and what it cannot do without."""

import pytest
import torch
from torch import nn

import dwsep
from tests.analysis.toys import network

pytestmark = pytest.mark.usefixtures("own_ceilings")


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
    _, residual, *_ = network()
    start = nn.Conv2d(64, 16, 3, 2, 1, bias=False)  # too many operands for a stage
    model = nn.Sequential(start, nn.BatchNorm2d(16), nn.ReLU(), residual)
    dwsep.accelerate_(model)
    report = dwsep.analyze(model, torch.randn(2, 64, 32, 32), training=True, seconds=0, advice=False)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_of_a_separable_layer_follow_its_dtype(dtype):
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 16).to(dtype)
    report = dwsep.analyze(layer, torch.randn(1, 8, 12, 12, dtype=dtype), seconds=0, advice=False)
    elements = 8 * 144 + 16 * 144 + sum(parameter.numel() for parameter in layer.parameters())
    assert report.bytes == dtype.itemsize * elements
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert ("floor" in str(report).splitlines()[0]) == (dtype != torch.float64)
    assert ("no floors: they are known on a CPU" in str(report)) == (dtype == torch.float64)


def test_floor_is_what_the_ceilings_say():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), seconds=0, advice=False)
    row = report.rows[0]
    assert row.floor == report.ceilings.floor_seconds(row.macs, row.bytes)
    assert row.bound in ("arithmetic", "memory")
    assert row.share == row.floor / row.latency.median
