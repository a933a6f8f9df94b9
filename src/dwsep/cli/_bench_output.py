"""What ``dwsep bench`` prints and writes at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dwsep.bench.tables import Table

_WIDE = 92  # columns from which on every ratio has room
_TITLE = 24  # columns in which a title of a summary can be read


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the tables, the summary, what was not timed and why, and what the machine can do."""
    from rich.markup import escape

    from dwsep.analysis.ceilings import Ceilings
    from dwsep.bench.markdown import describe_ceilings, disturbance
    from dwsep.bench.results import notes
    from dwsep.bench.tables import result_tables, summary_table

    for table in result_tables(results["records"], all_ratios=console.width >= _WIDE):
        _print_table(table, "ms", console)
    _print_summary(summary_table(results["records"]), console)
    for dtype, entry in results["ceilings"].items():
        console.print(escape(describe_ceilings(Ceilings.from_json(entry), dtype)))
    for remark in notes(results["records"]):
        console.print(f"[yellow]not timed[/]: {escape(remark)}")
    disturbed = disturbance(results)
    if disturbed is not None:
        console.print(f"[yellow]at worst, {escape(disturbed)}[/]")


def write_files(results: Mapping[str, Any], markdown: Path | None, plot: Path | None, console: Console) -> None:
    """Writes the page and the plot where they were asked for, and says so."""
    from dwsep.analysis._files import write_text_atomically
    from dwsep.bench.markdown import render_markdown
    from dwsep.bench.roofline import write_roofline

    if markdown is not None:
        write_text_atomically(markdown, render_markdown(results))
        console.print(f"wrote {markdown}", soft_wrap=True)
    if plot is not None:
        write_roofline(results, plot)
        console.print(f"wrote {plot}", soft_wrap=True)


def _print_table(table: Table, unit: str, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    console.print(f"[bold]{escape(table.title)}[/] ({unit})")  # as a title it would be folded to the table's width
    # A column takes two more with the box: without it, and with headings of two lines, names keep theirs longer.
    roomy = sum(_widths(table)) + 2 * len(table.headings) <= console.width
    shown = RichTable(box=SIMPLE_HEAD if roomy else None, padding=(0, 1, 0, 0), pad_edge=roomy)
    for index, heading in enumerate(table.headings):
        name = escape(heading if roomy else heading.replace(" ", "\n"))
        shown.add_column(name, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for cells, best in zip(table.rows, table.best, strict=True):
        shown.add_row(*(_cell(cell, column == best) for column, cell in enumerate(cells)))
    console.print(shown)
    if not roomy:
        console.print()


def _print_summary(table: Table, console: Console) -> None:
    """Prints a line for each group of cases where their titles would have to be folded letter by letter."""
    from rich.markup import escape

    unit = "times faster than, over the cases"
    if sum(_widths(table)[1:]) + 2 * len(table.headings) + _TITLE <= console.width:
        _print_table(table, unit, console)
        return
    console.print(f"[bold]{escape(table.title)}[/] ({unit})")
    for title, *cells in table.rows:
        entries = [f"{heading} {cell}" for heading, cell in zip(table.headings[1:], cells, strict=True)]
        console.print(f"{escape(title)}: [bold]{escape(', '.join(entries))}[/]")
    console.print()


def _widths(table: Table) -> list[int]:
    return [max(map(len, (heading, *cells))) for heading, *cells in zip(table.headings, *table.rows, strict=True)]


def _cell(text: str, best: bool) -> str:
    from rich.markup import escape

    if text in ("wrong", "failed"):
        return f"[red]{text}[/]"
    return f"[bold underline]{escape(text)}[/]" if best else escape(text)
