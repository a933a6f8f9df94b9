"""What ``dwsep analyze`` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dwsep.analysis._tables import notes
from dwsep.analysis.report import format_count

if TYPE_CHECKING:
    from rich.console import Console

    from dwsep.analysis import CostReport


def print_report(console: Console, report: CostReport, sort: str | None, depth: int | None) -> None:
    """Prints the table, and below it what a reader must know and can do."""
    if not console.is_terminal:  # a file has no width: nothing is cut off
        console = type(console)(file=console.file, width=max(console.width, 130), highlight=False)
    console.print(report.table(sort=sort, depth=depth))
    console.print()
    for line in notes(report):
        console.print(line, markup=False)


def print_comparison(console: Console, one: CostReport, other: CostReport) -> None:
    """Prints the totals of two networks side by side, and their multiply-adds and times by kind of layer."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", one.name, other.name, "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    totals: list[tuple[str, Callable[[CostReport], Any], Callable[[float], str]]] = [
        ("macs", lambda report: report.macs, format_count),
        ("parameters", lambda report: report.parameters, format_count),
        ("MB read and written", lambda report: report.bytes, _megabytes),
        ("MB saved for backward", lambda report: report.saved_bytes, _megabytes),
        ("ms", lambda report: None if report.latency is None else report.latency.median, _milliseconds),
        ("ms at the least", lambda report: report.floor, _milliseconds),
    ]
    for title, figure, show in totals:
        _add(table, title, figure(one), figure(other), show)
    kinds = dict.fromkeys(row.kind for report in (one, other) for row in report.rows)
    for kind in kinds:
        _add(table, f"macs, {kind}", _macs(one, kind), _macs(other, kind), format_count)
        _add(table, f"ms, {kind}", _seconds(one, kind), _seconds(other, kind), _milliseconds)
    console.print()
    console.print(table)


def _add(table: Any, title: str, one: float | None, other: float | None, show: Callable[[float], str]) -> None:
    if not one and not other:
        return
    ratio = f"{one / other:.2f}" if one and other else ""
    table.add_row(title, *("" if value is None else show(value) for value in (one, other)), ratio)


def _macs(report: CostReport, kind: str) -> int:
    return sum(row.macs for row in report.rows if row.kind == kind)


def _seconds(report: CostReport, kind: str) -> float | None:
    times = [row.latency.median for row in report.rows if row.kind == kind and row.latency is not None]
    return sum(times) if times else None


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f}"


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.3f}"
