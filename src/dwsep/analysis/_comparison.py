"""Two reports side by side: the figures that a table of both shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dwsep.analysis.report import format_count

if TYPE_CHECKING:
    from dwsep.analysis.cost_report import CostReport


@dataclass(frozen=True)
class Pair:
    """A figure of two networks; None where one has none."""

    title: str
    one: float | None
    other: float | None
    show: Callable[[float], str]

    @property
    def cells(self) -> tuple[str, str, str]:
        """Both as text, and the first over the second."""
        ratio = f"{self.one / self.other:.2f}" if self.one and self.other else ""
        one, other = ("" if value is None else self.show(value) for value in (self.one, self.other))
        return one, other, ratio


def totals(one: CostReport, other: CostReport) -> list[Pair]:
    """The figures of the networks as a whole."""

    def pair(title: str, figure: Callable[[CostReport], float | None], show: Callable[[float], str]) -> Pair:
        return Pair(title, figure(one), figure(other), show)

    pairs = [
        pair("macs", lambda report: report.macs, format_count),
        pair("parameters", lambda report: report.parameters, format_count),
        pair("MB read and written", lambda report: report.bytes, _megabytes),
        pair("MB saved for backward", lambda report: report.saved_bytes, _megabytes),
        pair("ms", lambda report: None if report.latency is None else report.latency.median, _milliseconds),
        pair("ms at the least", lambda report: report.floor, _milliseconds),
        pair("ms between the layers", lambda report: report.between and report.between.median, _milliseconds),
        pair("page faults a run", lambda report: report.page_faults, lambda faults: f"{faults:,.0f}"),
    ]
    return [entry for entry in pairs if entry.one or entry.other]


def kinds(one: CostReport, other: CostReport) -> list[tuple[str, Pair, Pair]]:
    """Multiply-adds and seconds by kind of layer, in the order in which they come."""
    found = dict.fromkeys(row.kind for report in (one, other) for row in report.rows)
    entries = [
        (
            kind,
            Pair(f"macs, {kind}", _macs(one, kind), _macs(other, kind), format_count),
            Pair(f"ms, {kind}", _seconds(one, kind), _seconds(other, kind), _milliseconds),
        )
        for kind in found
    ]
    return [entry for entry in entries if any((*_values(entry[1]), *_values(entry[2])))]


def _values(pair: Pair) -> tuple[float | None, float | None]:
    return pair.one, pair.other


def _macs(report: CostReport, kind: str) -> int | None:
    return sum(row.macs for row in report.rows if row.kind == kind) or None


def _seconds(report: CostReport, kind: str) -> float | None:
    times = [row.latency.median for row in report.rows if row.kind == kind and row.latency is not None]
    return sum(times) if times else None


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f}"


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.3f}"
