"""Time of a network and of each of its parts, in turns, so that a drifting machine is fair to the sum and the whole."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dwsep.accelerate.stepwise import empty_program
from dwsep.analysis._load import OtherProcesses
from dwsep.analysis._page_faults import count_page_faults, seconds_of_page_fault
from dwsep.analysis._passes import evaluating, training_step
from dwsep.analysis._timeline import Run, Timeline
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
        between: Of what does no layer's work: Python's own time between the layers, and autograd's.
        steps: Seconds of an accelerated network's steps run one by one, over those of the calls that run them; None
            where nothing is accelerated.
        other_cores: Cores that other processes kept busy meanwhile, on average; None where nobody knows.
        page_faults: Of a run without clocks inside; None where nobody knows.
        fault_seconds: Of one page fault.
    """

    whole: Latency
    units: list[Unit]
    times: list[Latency]
    between: Latency
    steps: float | None
    other_cores: float | None
    page_faults: float | None
    fault_seconds: float


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
        Medians and quartiles of the faster half of the rounds: what else the machine does only ever slows them. What
        an accelerated network runs as one call is timed as one; its steps, also run one by one, only tell how the
        call's time divides among them.
    """
    with training_step(model) if training else evaluating(model), torch.set_grad_enabled(training):
        timeline = Timeline(model, arguments, training)
        timeline.timed()
        timeline.plain()
        load, started = OtherProcesses(), time.perf_counter()
        runs, wholes, steps, faults = [], [], [], []
        while len(runs) < _FEWEST_ROUNDS or (len(runs) < _MOST_ROUNDS and time.perf_counter() - started < seconds):
            timeline.timed()  # each timed run follows one like it: caches hold what they would
            runs.append(timeline.timed())
            timeline.plain()
            before = count_page_faults()
            wholes.append(timeline.plain())
            after = count_page_faults()
            if before is not None and after is not None:
                faults.append(after - before)
            if timeline.has_steps:
                timeline.timed(steps=True)
                steps.append(timeline.timed(steps=True))
    runs, wholes, steps = _faster(runs), _faster(wholes, key=float), _faster(steps)
    units = units_of(cost, runs[0], steps[0] if steps else runs[0], timeline.parts)
    ratio = _divide(units, runs, steps) if steps else None
    times = [summarise([unit.seconds(run) for run in runs], 1) for unit in units]
    working = [unit for unit in units if unit.layers]
    between = [max(run.total - sum(unit.seconds(run) for unit in working), 0.0) for run in runs]
    return Measured(
        whole=summarise(wholes, 1),
        units=units,
        times=times,
        between=summarise(between, 1),
        steps=ratio,
        other_cores=load.cores(),
        page_faults=statistics.median(faults) if faults else None,
        fault_seconds=seconds_of_page_fault(),
    )


def _faster(runs: list[Any], key: Callable[[Any], float] = lambda run: run.total) -> list[Any]:
    return sorted(runs, key=key)[: -(-len(runs) // 2)]


def _divide(units: Sequence[Unit], runs: Sequence[Run], steps: Sequence[Run]) -> float:
    """Divides each call of accelerated networks among its steps; the seconds of all steps over those of the calls."""
    native = _native_call_seconds() if any(unit.step is not None and unit.step.native for unit in units) else 0.0
    calls: dict[int, list[tuple[Unit, float]]] = {}
    for unit in units:
        if unit.step is not None and unit.mark is not None:
            alone = statistics.median(run.spent(unit.mark) for run in steps)
            calls.setdefault(unit.place, []).append((unit, alone))
    one_by_one = together = 0.0
    for place, entries in calls.items():
        spared = native if len(entries) > 1 else 0.0  # a network makes one call, its steps one each
        own = [max(alone - spared * (unit.step is not None and unit.step.native), 1e-9) for unit, alone in entries]
        for (unit, _), alone in zip(entries, own, strict=True):
            unit.share = alone / sum(own)
        one_by_one += sum(own)
        together += statistics.median(run.spent(place) for run in runs)
    return one_by_one / together


def _native_call_seconds() -> float:
    """Seconds of a native program that computes next to nothing: a network makes one call, its steps one each."""
    call = empty_program()
    samples = []
    for _ in range(200):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)
