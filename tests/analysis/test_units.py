"""Every layer is in one timed part."""

import pytest

import dwsep
from tests.analysis.toys import larger_network

pytestmark = pytest.mark.usefixtures("own_ceilings")


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_parts_take_every_layer_once(accelerated, training):
    model, x = larger_network(accelerated)
    report = dwsep.analyze(model.train(training), x, training=training, advice=False, seconds=0)
    assert sorted(name for row in report.rows for name in row.layers) == sorted(layer.name for layer in report.layers)
    assert report.macs == dwsep.analyze(model, x, latency=False, training=training).macs
    assert report.seconds > 0
