"""What ``separate_`` is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dwsep.convert.fit import ORDERS
from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import check_int

BUDGETS = ("error", "macs", "latency", "latency_seconds", "rank")


@dataclass(frozen=True)
class SeparateConfig:
    """The budget of :func:`dwsep.separate_`, exactly one of the first five, and which layers it may touch.

    Args:
        error: largest relative error of the network's output, root mean square over the calibration data (over
            ``example_inputs`` without any), above 0 and below 1. The macs are made as few as that allows.
        macs: most multiply-adds of the whole network, as a share of the dense one's (up to 1) or as a count for
            ``example_inputs`` (above 1). The error is made as small as that allows.
        latency: longest time of a call with ``example_inputs``, measured on this machine, as a share of the dense
            network's. The error is made as small as that allows.
        latency_seconds: the same in seconds.
        rank: the same rank for every layer, or the layer's own where that is smaller; 9 loses nothing of a 3x3 layer.
        order: ``"depthwise_first"``, ``"pointwise_first"`` (blueprint separable), or ``"auto"``: whichever serves a
            layer better.
        include: names of the modules to separate, everything inside them counted in, or regular expressions that match
            a whole name; empty for all.
        exclude: the same for modules to leave dense.
        min_channels: layers with fewer input or output channels stay dense: a first layer on RGB, for one.
        max_rank: largest rank to consider; ``None`` for all that pay.
        sweeps: how often the two factors of a layer are fitted in turn to the calibration data; 0 fits the pointwise
            one alone.
        measure_layers: whether the report has latencies; the latency budgets measure in any case.

    Raises:
        ArgumentError: none or several budgets, a value out of its range, a regular expression that is none.
        TypeError: a value of the wrong type.

    Example:
        >>> SeparateConfig(macs=1 / 3).budget
        ('macs', 0.3333333333333333)
    """

    error: float | None = None
    macs: float | None = None
    latency: float | None = None
    latency_seconds: float | None = None
    rank: int | None = None
    order: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_channels: int = 8
    max_rank: int | None = None
    sweeps: int = 2
    measure_layers: bool = True

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ArgumentError(f"exactly one of {', '.join(BUDGETS)} must be given, got {', '.join(given) or 'none'}")
        name, value = self.budget
        if name == "rank":
            check_int("rank", value, low=1)
        else:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
            if not (math.isfinite(value) and value > 0):
                raise ArgumentError(f"{name} must be finite and above 0, got {value}")
            if name in ("error", "latency") and value >= 1:
                raise ArgumentError(f"{name} is a share and must be below 1, got {value}")
        if self.order not in ("auto", *ORDERS):
            raise unknown_name("order", self.order, ("auto", *ORDERS))
        for name in ("include", "exclude"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        check_int("min_channels", self.min_channels, low=1)
        check_int("sweeps", self.sweeps, low=0)
        if self.max_rank is not None:
            check_int("max_rank", self.max_rank, low=1)

    @property
    def budget(self) -> tuple[str, float]:
        """Name and value of the budget."""
        return next((name, getattr(self, name)) for name in BUDGETS if getattr(self, name) is not None)

    @property
    def orders(self) -> tuple[str, ...]:
        """The orders to consider."""
        return ORDERS if self.order == "auto" else (self.order,)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``include`` or ``exclude`` means the module of that name.

    Example:
        >>> matches("layer1", "layer1.0.conv"), matches(r".*\\.conv2", "layer1.0.conv2"), matches("layer1", "layer10")
        (True, True, False)
    """
    return name == pattern or name.startswith(f"{pattern}.") or re.fullmatch(pattern, name) is not None


def _patterns(argument: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be names or regular expressions, got {value!r}")
    patterns = tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be names or regular expressions, got {pattern!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ArgumentError(f"{argument}: {pattern!r} is no regular expression: {error}") from error
    return patterns
