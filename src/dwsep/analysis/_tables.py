"""A report as a table: in a terminal with rich, in a notebook as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dwsep.analysis._page_faults import describe_page_faults
from dwsep.analysis._rows import Row
from dwsep.analysis.ceilings import PEAKS
from dwsep.analysis.latency import Latency
from dwsep.analysis.report import format_count
from dwsep.errors import ArgumentError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dwsep.analysis.cost_report import CostReport

# What a run spends outside of all layers.
BETWEEN = "between the layers"
_WITHOUT_FLOOR = f"no floors: they are known on a CPU, for networks in {' or '.join(PEAKS)} alone"
SORTS = ("order", "time", "macs", "bytes")


@dataclass(frozen=True)
class Line:
    """Rows in one line, with their sums, or the time that no row has."""

    name: str
    rows: tuple[Row, ...]
    between: Latency | None = None

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def seconds(self) -> float:
        between = self.between.median if self.between is not None else 0.0
        return between + sum(row.latency.median for row in self.rows if row.latency is not None)

    @property
    def floor(self) -> float:
        return sum(row.floor or 0.0 for row in self.rows)

    @property
    def kind(self) -> str:
        kinds = list(dict.fromkeys(row.kind for row in self.rows)) or [""]
        return kinds[0] if len(kinds) == 1 else f"{len(self.rows)} rows"

    @property
    def bound(self) -> str:
        """What bounds most of the time."""
        shares = {
            bound: sum(row.latency.median for row in self.rows if row.bound == bound and row.latency)
            for bound in ("arithmetic", "memory")
        }
        return max(shares, key=lambda bound: shares[bound]) if any(shares.values()) else ""


def lines_of(report: CostReport, sort: str | None, depth: int | None, most: int | None = None) -> list[Line]:
    """The lines of a table, sorted and summed up as asked; the time that no row has comes last."""
    from dwsep.analysis.cost_report import MOST_LINES

    for argument, value in (("depth", depth), ("most", most)):
        if value is not None and value < 0:
            raise ArgumentError(f"{argument} must not be negative, got {value}")
    if sort is None:
        sort = "order" if report.latency is None else "time"
    if sort not in SORTS:
        raise unknown_name("sort", sort, SORTS)
    if depth is None:
        depth = 0 if len(report.rows) <= MOST_LINES else 2
    if depth:
        blocks: dict[str, list[Row]] = {}
        for row in report.rows:
            blocks.setdefault(row.block(depth), []).append(row)
        lines = [Line(name, tuple(rows)) for name, rows in blocks.items()]
    else:
        lines = [Line(row.name or report.name, (row,)) for row in report.rows]
    keys: dict[str, Callable[[Line], float]] = {
        "time": lambda line: -line.seconds,
        "macs": lambda line: -line.macs,
        "bytes": lambda line: -line.bytes,
    }
    if sort in keys:
        lines.sort(key=keys[sort])
    if most is not None and len(lines) > most:
        rest = tuple(row for line in lines[most:] for row in line.rows)
        lines = [*lines[:most], Line(f"{len(lines) - most} more", rest)]
    return [*lines, Line(BETWEEN, (), report.between)] if report.between is not None else lines


def total_of(report: CostReport) -> Line:
    """All in one line."""
    return Line("sum of the lines", report.rows, report.between)


def columns_of(report: CostReport) -> list[tuple[str, Callable[[Line], str]]]:
    """Titles and cells behind the name and the kind."""
    columns: list[tuple[str, Callable[[Line], str]]] = [
        ("macs", lambda line: format_count(line.macs) if line.macs else ""),
        ("params", lambda line: format_count(line.parameters) if line.parameters else ""),
        ("MB", lambda line: f"{line.bytes / 1e6:.2f}" if line.rows else ""),
    ]
    if any(row.reduction is not None for row in report.rows):
        columns.append(("dense \N{MULTIPLICATION SIGN}", _reduction))
    if report.training:
        columns.append(("saved MB", lambda line: _megabytes(sum(row.saved_bytes or 0 for row in line.rows))))
        columns.append(("fused MB", lambda line: _megabytes(sum(row.saved_bytes_fused or 0 for row in line.rows))))
    if report.latency is not None:
        columns.append(("ms ± IQR", lambda line: f"{1e3 * line.seconds:.3f}{_spread(line)}"))
    if report.floor is not None:
        columns.append(("floor ms", lambda line: f"{1e3 * line.floor:.3f}" if line.rows else ""))
        columns.append(("share", _share))
        columns.append(("bound by", lambda line: line.bound))
    return columns


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}" if value else ""


def _share(line: Line) -> str:
    return f"{100 * line.floor / line.seconds:.0f} %" if line.rows and line.seconds else ""


def _spread(line: Line) -> str:
    latencies = [row.latency for row in line.rows] if line.between is None else [line.between]
    latency = latencies[0] if len(latencies) == 1 else None
    if latency is None or (line.rows and line.between is not None):
        return ""
    return f" ±{1e3 * (latency.upper_quartile - latency.lower_quartile):.3f}"


def _reduction(line: Line) -> str:
    pairs = [(row.dense_macs, row.dense_macs / row.reduction) for row in line.rows if row.dense_macs and row.reduction]
    return f"{sum(dense for dense, _ in pairs) / sum(own for _, own in pairs):.1f}" if pairs else ""


def make_table(report: CostReport, sort: str | None, depth: int | None, most: int | None = None) -> Table:
    """The table for a terminal, totals at its foot."""
    from rich.table import Table

    columns = columns_of(report)
    table = Table(title=headline(report), title_justify="left", show_footer=True, box=None, pad_edge=False)
    table.add_column("layer", total_of(report).name, overflow="fold", min_width=26)
    table.add_column("kind", "", overflow="fold", min_width=10)
    everything = total_of(report)
    for title, cell in columns:
        foot = "" if title == "bound by" else cell(everything)
        table.add_column(title, foot, justify="left" if title == "bound by" else "right", no_wrap=True)
    for line in lines_of(report, sort, depth, most):
        table.add_row(line.name, line.kind, *(cell(line) for _, cell in columns))
    return table


def headline(report: CostReport) -> str:
    """The totals in a sentence."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in report.input_shapes)
    what = "training step" if report.training else "inference"
    what += "" if report.dtype == "float32" else f" in {report.dtype}"
    counts = f"{format_count(report.macs)} macs, {format_count(report.parameters)} parameters"
    text = f"{report.name}, {what}, {shapes}: {counts}"
    if report.latency is not None:
        text += f", {1e3 * report.latency.median:.3f} ms"
        if report.floor is not None:
            text += f" (floor {1e3 * report.floor:.3f} ms)"
    if report.saved_bytes is not None and report.saved_bytes_fused is not None:
        text += f"; saved for backward {report.saved_bytes / 1e6:.1f} MB, by fused stages "
        text += f"{report.saved_bytes_fused / 1e6:.1f} MB"
    return text


def notes(report: CostReport) -> list[str]:
    """What a reader must know beside the figures, and the advice."""
    lines = []
    if report.latency is not None and report.seconds is not None:
        share = report.seconds / report.latency.median
        lines.append(
            f"whole network measured apart, without clocks inside: {1e3 * report.latency.median:.3f} ms; the lines sum "
            f"to {100 * share:.0f} % of it"
        )
    if report.steps is not None:
        lines.append(
            "steps that run in one call share its time in proportion to what they take when run one by one, which in "
            f"sum is {100 * report.steps:.0f} % of the calls' time"
        )
    if report.dense_macs is not None:
        plain = sum(layer.macs for layer in report.layers)
        lines.append(
            f"with dense convolutions in place of the separable ones: {format_count(report.dense_macs)} macs"
            f"{' at inference' if report.training else ''}, {report.dense_macs / plain:.1f} times as many"
        )
    if report.disturbance is not None:
        lines.append(report.disturbance)
    if report.latency is not None and report.page_faults is not None and report.fault_seconds is not None:
        told = describe_page_faults(report.page_faults, report.fault_seconds, report.latency.median)
        lines += [told] if told is not None else []
    if not report.rows:
        lines.append("the network runs no operator that computes anything")
    elif report.latency is not None and report.floor is None:
        lines.append(_WITHOUT_FLOOR)
    lines += [f"{row.name or report.name}: {text}" for row in report.rows for text in row.advice]
    return lines


def legend(report: CostReport) -> str:
    """What the columns are."""
    parts = ["a line is what runs as one", "MB: inputs and weights read once, results written once"]
    if any(row.reduction is not None for row in report.rows):
        dense = "dense \N{MULTIPLICATION SIGN}: macs of the dense convolution that a depthwise layer and its pointwise "
        parts.append(f"{dense}partner stand in for, over theirs")
    if report.training:
        parts.append("macs, MB and ms are those of forward and backward")
        parts.append("saved MB: kept for the backward by eager PyTorch, fused MB: by accelerated stages")
    if report.latency is not None:
        parts.append("ms: median, ± its interquartile range")
    if report.floor is not None:
        parts.append("floor ms: the longer of the times for the macs at this machine's peak and for the MB at its "
                     "bandwidth, share: the floor over the time")  # fmt: skip
    return "; ".join(parts)


def render_text(report: CostReport, width: int = 120) -> str:
    """The table and its notes as plain text."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_report(console, report)
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


def print_report(console: Console, report: CostReport, sort: str | None = None, depth: int | None = None) -> None:
    """Prints the table, and below it what a reader must know and can do."""
    table = make_table(report, sort, depth)
    table.title = None  # which would be no wider than the table
    console.print(headline(report), style="italic", markup=False)
    console.print(table)
    console.print()
    for line in notes(report):
        console.print(line, markup=False)
    console.print(legend(report), style="dim", markup=False)


def render_notebook(report: CostReport) -> str:
    """The table and its notes as HTML, without style of its own."""
    columns = columns_of(report)
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in ("layer", "kind", *(title for title, _ in columns)))
    lines = lines_of(report, None, None)
    rows = [_html_row([line.name, line.kind, *(cell(line) for _, cell in columns)]) for line in lines]
    total = total_of(report)
    rows.append(_html_row([total.name, "", *(cell(total) for _, cell in columns)]))
    items = "".join(f"<li>{html.escape(text)}</li>" for text in notes(report))
    return f"<p>{html.escape(headline(report))}</p><table><tr>{heads}</tr>{''.join(rows)}</table><ul>{items}</ul>"


def _html_row(cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
