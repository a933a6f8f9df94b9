"""A report as a file: one page with everything in it, or data; two reports as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.analysis._files import write_text_atomically
from dwsep.analysis.report import format_allocator, format_count, require_report_packages
from dwsep.errors import ArgumentError

if TYPE_CHECKING:
    from dwsep.analysis.cost_report import CostReport

# Layers in a chart: more would not be told apart.
_MOST_BARS = 24


def save(report: CostReport, path: str | Path, what: str | None = None, against: CostReport | None = None) -> None:
    """See :meth:`dwsep.CostReport.save`; ``what`` is "html" or "json", the suffix by default."""
    what = what or Path(path).suffix[1:]
    if what == "json":
        data = report.to_dict() if against is None else {"networks": [report.to_dict(), against.to_dict()]}
        write_text_atomically(path, json.dumps(data, indent=1) + "\n")
    elif what == "html":
        write_text_atomically(path, render_page(report) if against is None else render_comparison(report, against))
    else:
        raise ArgumentError(f"path must end in .html or .json, got {str(path)!r}")


def render_page(report: CostReport) -> str:
    """The page: it makes no request, and follows the reader's choice of light and dark."""
    from dwsep.analysis._tables import headline, legend, notes

    template = _template("analysis.html.j2")
    return template.render(
        report=report,
        totals=report.to_dict()["totals"],
        headline=headline(report),
        notes=_beside_disturbance(notes(report), report),
        legend=legend(report),
        charts=_charts(report, ""),
    )


def render_comparison(one: CostReport, other: CostReport) -> str:
    """A page of two networks side by side."""
    from dwsep.analysis import _comparison
    from dwsep.analysis._cost_charts import pair_chart
    from dwsep.analysis._tables import headline, legend, notes

    template = _template("comparison.html.j2")
    by_kind = _comparison.kinds(one, other)
    labels = (one.name, other.name) if one.name != other.name else (one.name, f"{other.name} (2)")
    charts = []
    for key, title, unit, factor, pairs in (
        ("macs", "Multiply-adds by kind of layer", "million macs", 1e-6, [(kind, macs) for kind, macs, _ in by_kind]),
        ("ms", "Time by kind of layer", "ms", 1e3, [(kind, seconds) for kind, _, seconds in by_kind]),
    ):
        shown = [(kind, pair) for kind, pair in pairs if pair.one or pair.other]
        if shown:
            values = [[factor * (value or 0) for value in side] for side in zip(*((p.one, p.other) for _, p in shown))]
            svg = pair_chart([kind for kind, _ in shown], values[0], values[1], unit, labels, f"pair-{key}")
            charts.append((key, title, svg))
    sides = [
        {"report": report, "name": name, "headline": headline(report), "id": f"layers-{number}",
         "notes": _beside_disturbance(notes(report), report), "charts": _charts(report, f"-{number}")}
        for number, (report, name) in enumerate(zip((one, other), labels), start=1)
    ]  # fmt: skip
    figures = [*_comparison.totals(one, other), *(pair for _, *pairs in by_kind for pair in pairs)]
    figures = [pair for pair in figures if pair.one or pair.other]
    return template.render(sides=sides, figures=figures, charts=charts, report=one, legend=legend(one))


def _beside_disturbance(lines: list[str], report: CostReport) -> list[str]:
    return [line for line in lines if line != report.disturbance]  # which stands at the top of the page


def _charts(report: CostReport, suffix: str) -> list[tuple[str, str, str]]:
    """The charts of a report: what they are, their titles, and they themselves; ``suffix`` tells their ids apart."""
    from dwsep.analysis import _cost_charts
    from dwsep.analysis._tables import lines_of

    timed = report.latency is not None
    by_cost = lines_of(report, None if timed else "macs", None, _MOST_BARS)
    title = "Where the multiply-adds are" + (", and where the time goes" if timed else "")
    charts = [("bars", title, _cost_charts.bar_chart(by_cost, f"bars{suffix}"))]
    if report.ceilings is not None:
        roofline = _cost_charts.roofline_chart(report, f"roofline{suffix}")
        charts.append(("roofline", "How fast each layer runs, under what this machine allows", roofline))
        floor = _cost_charts.floor_chart(by_cost, f"floor{suffix}")
        charts.append(("floor", "What was promised, and what was paid", floor))
    if report.promises:
        promise = _cost_charts.promise_chart(report.promises[:_MOST_BARS], f"promise{suffix}")
        charts.append(("promise", "Separable against dense: saved on paper, saved in time", promise))
    return charts


def _template(name: str) -> Any:
    require_report_packages()
    import jinja2

    from dwsep.analysis._tables import BETWEEN

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwsep.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=format_count, allocator=format_allocator)
    environment.globals["between"] = BETWEEN
    return environment.get_template(name)
