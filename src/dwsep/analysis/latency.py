"""Latency of several callables, measured side by side so that a drifting machine is fair to all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_MAX_CALLS = 100_000  # calls per turn


@dataclass(frozen=True)
class Latency:
    """Seconds per call of one case.

    Attributes:
        median: Median over the rounds.
        lower_quartile: First quartile over the rounds.
        upper_quartile: Third quartile over the rounds.
        rounds: How many rounds were timed.
        calls_per_round: How many calls in a row make up one timing.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    calls_per_round: int


def measure(
    cases: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    min_seconds: float = 0.02,
    warmup_seconds: float = 0.1,
    max_seconds: float | None = None,
    settle_seconds: float = 0.0,
    timer: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Measures the seconds per call of every case, one short turn after another, round after round.

    All cases are warmed up first, which also finds how many calls fill ``min_seconds``. Then in every round each case
    has one turn: an untimed call, so that it does not pay for caches the case before it filled, and the timed ones.
    The case that begins changes from round to round. What slows the machine for a while thus slows every case.

    Args:
        cases: Callables by name, without arguments. One that starts asynchronous work must wait for it.
        rounds: Turns of each case.
        min_seconds: Shortest timed turn, in seconds; short calls are repeated until they fill it.
        warmup_seconds: Seconds for which each case runs before it is timed; at least one call is made.
        max_seconds: Seconds after which no further round is begun, warm-up not counted; three are made in any case.
        settle_seconds: For how long a turn goes on with untimed calls, for idle threads of the case before it that
            wait busily for more work; one is made in any case.
        timer: Clock in seconds.
        on_round: Called after each round with the number of rounds done and planned.

    Returns:
        Median and quartiles of the seconds per call, by the names of the cases.

    Raises:
        ValueError: ``cases`` is empty, ``rounds`` is less than 1, or a duration is negative.

    Example:
        >>> results = measure({"sum": lambda: sum(range(100))}, rounds=3, min_seconds=0.0001, warmup_seconds=0)
        >>> results["sum"].rounds
        3
    """
    if not cases:
        raise ValueError("cases must hold at least one callable, got none")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    for argument, seconds in (
        ("min_seconds", min_seconds),
        ("warmup_seconds", warmup_seconds),
        ("settle_seconds", settle_seconds),
    ):
        if not seconds >= 0:
            raise ValueError(f"{argument} must not be negative, got {seconds}")
    if max_seconds is not None and not max_seconds >= 0:
        raise ValueError(f"max_seconds must not be negative, got {max_seconds}")

    calls = {name: _warm_up(case, min_seconds, warmup_seconds, timer) for name, case in cases.items()}
    names = list(cases)
    samples: dict[str, list[float]] = {name: [] for name in names}
    started = timer()
    for done in range(rounds):
        if max_seconds is not None and done >= 3 and timer() - started >= max_seconds:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_turn(cases[name], calls[name], settle_seconds, timer))
        if on_round is not None:
            on_round(done + 1, rounds)
    return {name: summarise(samples[name], calls[name]) for name in names}


def _warm_up(case: Callable[[], object], min_seconds: float, warmup_seconds: float, timer: Callable[[], float]) -> int:
    """Runs a case for a while and returns how many calls fill ``min_seconds``, judged by its fastest call."""
    fastest = float("inf")
    started = before = timer()
    while True:
        case()
        now = timer()
        fastest = min(fastest, now - before)
        if now - started >= warmup_seconds:
            break
        before = now
    if fastest * _MAX_CALLS <= min_seconds:  # also where a call is below the clock's resolution
        return _MAX_CALLS
    return max(1, math.ceil(min_seconds / fastest))


def _turn(case: Callable[[], object], calls: int, settle_seconds: float, timer: Callable[[], float]) -> float:
    case()
    if settle_seconds > 0:
        started = timer()
        while timer() - started < settle_seconds:
            case()
    started = timer()
    for _ in range(calls):
        case()
    return (timer() - started) / calls


def summarise(samples: list[float], calls: int) -> Latency:
    """Median and quartiles of seconds per call, of rounds of so many calls."""
    if len(samples) == 1:
        lower = upper = samples[0]
    else:
        lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Latency(statistics.median(samples), lower, upper, len(samples), calls)
