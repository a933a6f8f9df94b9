"""A clock that goes on only where a module says so shows where every second goes."""

import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis import _timeline

pytestmark = pytest.mark.usefixtures("own_ceilings")


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
