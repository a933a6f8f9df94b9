"""Times of the parts beside that of the whole."""

import pytest
import torch

import dwsep
from dwsep.analysis import _measure
from dwsep.analysis._passes import evaluating, training_step
from dwsep.analysis._timeline import Timeline
from dwsep.analysis._units import units_of
from dwsep.analysis.cost import analyse
from tests.analysis.toys import larger_network, network

pytestmark = pytest.mark.usefixtures("own_ceilings")


@pytest.mark.parametrize("training", [False, True])
def test_steps_of_one_call_share_its_time_and_no_more(training):
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
    check_sum_of_parts(*larger_network(accelerated), training)


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
