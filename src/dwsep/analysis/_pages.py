"""A report as a file: one page with everything in it, or data."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dwsep.analysis._files import write_text_atomically
from dwsep.analysis.report import format_allocator, format_count, require_report_packages
from dwsep.errors import ArgumentError

if TYPE_CHECKING:
    from dwsep.analysis.cost_report import CostReport

# Layers in a chart: more would not be told apart.
_MOST_BARS = 24


def save(report: CostReport, path: str | Path, what: str | None = None) -> None:
    """See :meth:`dwsep.CostReport.save`; ``what`` is "html" or "json", the suffix by default."""
    what = what or Path(path).suffix[1:]
    if what == "json":
        write_text_atomically(path, json.dumps(report.to_dict(), indent=1) + "\n")
    elif what == "html":
        write_text_atomically(path, render_page(report))
    else:
        raise ArgumentError(f"path must end in .html or .json, got {str(path)!r}")


def render_page(report: CostReport) -> str:
    """The page: it makes no request, and follows the reader's choice of light and dark."""
    require_report_packages()
    import jinja2

    from dwsep.analysis import _cost_charts
    from dwsep.analysis._tables import headline, lines_of, notes

    source = importlib.resources.files("dwsep.analysis").joinpath("templates/analysis.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=format_count, allocator=format_allocator)
    by_cost = lines_of(report, None if report.latency is not None else "macs", None, _MOST_BARS)
    charts = [("bars", "Where the multiply-adds are, and where the time goes" if report.latency is not None
               else "Where the multiply-adds are", _cost_charts.bar_chart(by_cost))]  # fmt: skip
    if report.ceilings is not None:
        charts.append(("roofline", "How fast each layer runs, under what this machine allows",
                       _cost_charts.roofline_chart(report)))  # fmt: skip
        charts.append(("floor", "What was promised, and what was paid", _cost_charts.floor_chart(by_cost)))
    if report.promises:
        charts.append(("promise", "Separable against dense: saved on paper, saved in time",
                       _cost_charts.promise_chart(report.promises[:_MOST_BARS])))  # fmt: skip
    return environment.from_string(source).render(
        report=report, totals=report.to_dict()["totals"], headline=headline(report), notes=notes(report), charts=charts
    )
