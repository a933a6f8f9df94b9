"""Time of a network and of each of its parts, in turns, so that a drifting machine is fair to the sum and the whole."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dwsep.analysis._accelerated import empty_program
from dwsep.analysis._load import OtherProcesses
from dwsep.analysis._passes import evaluating, training_step
from dwsep.analysis._timeline import Timeline
from dwsep.analysis._units import Unit, units_of
from dwsep.analysis.cost import ModelCost
from dwsep.analysis.latency import Latency, summarise

_MOST_ROUNDS = 60
_FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """Times of a network.

    Attributes:
        whole: Of a run without clocks inside.
        units: What was timed as one, in order.
        times: Of each unit.
        other_cores: Cores that other processes kept busy meanwhile, on average; None where nobody knows.
    """

    whole: Latency
    units: list[Unit]
    times: list[Latency]
    other_cores: float | None


def measure_parts(
    model: nn.Module, arguments: Sequence[Any], cost: ModelCost, *, training: bool, seconds: float
) -> Measured:
    """Times a network as a whole and part by part, one after the other, round after round.

    Args:
        model: Network; its modes, buffers and gradients are left as they are.
        arguments: Its positional arguments.
        cost: What :func:`dwsep.analysis.cost.analyse` found.
        training: Whether a training step is timed, or an inference.
        seconds: After which no further round begins; five are made in any case.

    Returns:
        Medians and quartiles of the faster half of the rounds: what else the machine does only ever slows them.
    """
    with training_step(model) if training else evaluating(model), torch.set_grad_enabled(training):
        timeline = Timeline(model, arguments, training)
        timeline.timed()
        timeline.plain()
        load, started = OtherProcesses(), time.perf_counter()
        runs, wholes = [], []
        while len(runs) < _FEWEST_ROUNDS or (len(runs) < _MOST_ROUNDS and time.perf_counter() - started < seconds):
            timeline.timed()  # each timed run follows one like it: caches hold what they would
            runs.append(timeline.timed())
            timeline.plain()
            wholes.append(timeline.plain())
    runs = sorted(runs, key=lambda run: run.total)
    runs, wholes = runs[: -(-len(runs) // 2)], sorted(wholes)[: -(-len(wholes) // 2)]
    units = units_of(cost, runs[0], dict(timeline.parts), timeline.steps)
    call = _native_call_seconds() if any(unit.step is not None and unit.step.native for unit in units) else 0.0
    times = []
    for unit in units:
        spared = call if unit.step is not None and unit.step.native else 0.0
        times.append(summarise([max(unit.seconds(run) - spared, 0.0) for run in runs], 1))
    return Measured(summarise(wholes, 1), units, times, load.cores())


def _native_call_seconds() -> float:
    """Seconds of a native program that computes next to nothing: a network makes one call, its steps one each."""
    call = empty_program()
    samples = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)
