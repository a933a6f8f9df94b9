"""A training step is counted with its backward and what it saves."""

import pytest
import torch

import dwsep
from tests.analysis.toys import network


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
