"""What ``dwsep analyze`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dwsep.analysis._tables import print_report

if TYPE_CHECKING:
    from rich.console import Console

    from dwsep.analysis import CostReport


def print_table(console: Console, report: CostReport, sort: str | None, depth: int | None) -> None:
    """Prints a report."""
    print_report(_wide(console), report, sort, depth)


def print_comparison(console: Console, one: CostReport, other: CostReport) -> None:
    """Prints the totals of two networks side by side, and their multiply-adds and times by kind of layer."""
    from rich.table import Table

    from dwsep.analysis._comparison import kinds, totals

    table = Table(box=None, pad_edge=False)
    for title in ("", one.name, other.name, "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    for pair in (*totals(one, other), *(pair for _, *pairs in kinds(one, other) for pair in pairs)):
        if pair.one or pair.other:
            table.add_row(pair.title, *pair.cells)
    console = _wide(console)
    console.print()
    console.print(table)


def _wide(console: Console) -> Console:
    """A file has no width: nothing is cut off there."""
    if console.is_terminal:
        return console
    return type(console)(file=console.file, width=max(console.width, 180), highlight=False)
