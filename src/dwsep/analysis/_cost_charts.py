"""The charts of a cost report, as inline SVG whose colours the page decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dwsep.analysis._advice import Promise
from dwsep.analysis._charts import GRID, PROMISE, SERIES, TEXT, draw_legend, make_figure, to_svg

if TYPE_CHECKING:
    from dwsep.analysis._tables import Line
    from dwsep.analysis.cost_report import CostReport

_KIND_COLOURS = {"depthwise": 1, "pointwise": 2, "dense": 0, "separable": 3}


def bar_chart(lines: Sequence[Line], salt: str = "bars") -> str:
    """Draws each line's share of the multiply-adds, beside its share of the time where there is one."""
    macs, seconds = sum(line.macs for line in lines) or 1, sum(line.seconds for line in lines)
    series = [("of the macs", SERIES[2], [100 * line.macs / macs for line in lines])]
    if seconds:
        series.append(("of the time", SERIES[1], [100 * line.seconds / seconds for line in lines]))
    return _bars(salt, [line.name for line in lines], series, "%")


def floor_chart(lines: Sequence[Line], salt: str = "floor") -> str:
    """Draws each line's floor beside its time, in milliseconds."""
    series = [
        ("floor of this machine", PROMISE, [1e3 * line.floor for line in lines]),
        ("measured", SERIES[1], [1e3 * line.seconds for line in lines]),
    ]
    return _bars(salt, [line.name for line in lines], series, "ms")


def promise_chart(promises: Sequence[Promise], salt: str = "promise") -> str:
    """Draws how many times fewer multiply-adds separable layers do than dense ones, beside how many times faster."""
    series = [
        ("times fewer macs", PROMISE, [promise.reduction for promise in promises]),
        ("times faster than dense", SERIES[3], [promise.speedup for promise in promises]),
    ]
    return _bars(salt, [promise.name for promise in promises], series, "times", line=1.0)


def pair_chart(
    names: Sequence[str], one: Sequence[float], other: Sequence[float], unit: str, labels: tuple[str, str], salt: str
) -> str:
    """Draws figures of two networks beside one another."""
    return _bars(salt, names, [(_short(labels[0]), SERIES[1], one), (_short(labels[1]), SERIES[2], other)], unit)


def roofline_chart(report: CostReport, salt: str = "roofline") -> str:
    """Draws every row with multiply-adds by its intensity and speed, under the peak and the bandwidths."""
    assert report.ceilings is not None
    points = [row for row in report.rows if row.macs and row.latency is not None and row.latency.median > 0]
    figure, axes = make_figure(salt, (5.6, 4.2))
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    peak = report.ceilings.peak(report.dtype) / 1e9
    xs = [row.intensity for row in points] or [1.0]
    low, high = min(xs) / 1.6, max(*xs, 4.0) * 1.8
    ys = [2e-9 * row.macs / row.latency.median for row in points if row.latency is not None] or [peak]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(ys) / 1.8, peak * 1.7)
    axes.axhline(peak, color=PROMISE, linewidth=1.4)
    copies = report.ceilings.copy
    for rate, style, label in (
        (report.ceilings.memory_bandwidth, "-", "memory"),
        (max(copies.values()), "--", "caches"),
    ):
        ends = [low, max(peak * 1e9 / rate, low * 1.01)]
        axes.plot(ends, [x * rate / 1e9 for x in ends], color=PROMISE, linewidth=1.4, linestyle=style,
                  label=f"{label} {rate / 1e9:.0f} GB/s")  # fmt: skip
    groups: dict[str, list[Any]] = {}
    for row in points:
        name = row.kind if row.kind in _KIND_COLOURS else "fused" if "+" in row.kind else "other"
        groups.setdefault(name, []).append(row)
    markers = {"fused": ("D", SERIES[3]), "other": ("s", TEXT), "separable": ("^", SERIES[3])}
    for name, rows in groups.items():
        marker, colour = markers.get(name, ("o", SERIES[_KIND_COLOURS.get(name, 0)]))
        axes.scatter(
            [row.intensity for row in rows], [2e-9 * row.macs / row.latency.median for row in rows],
            s=26, marker=marker, facecolor=colour, edgecolor="none", alpha=0.85, label=name, zorder=3,
        )  # fmt: skip
    axes.set_xlabel("operations per byte")
    axes.set_ylabel(f"GFLOP/s (peak {peak:.0f})")
    draw_legend(axes, columns=3)
    return to_svg(figure, salt)


def _bars(
    salt: str,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[float]]],
    unit: str,
    line: float | None = None,
) -> str:
    """Draws horizontal bars, the first name at the top."""
    figure, axes = make_figure(salt, (5.6, 1.1 + 0.27 * len(names)))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    height = 0.8 / len(series)
    for index, (label, colour, values) in enumerate(series):
        places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(names))]
        promised = colour == PROMISE
        axes.barh(
            places, values, height * 0.92, label=label, facecolor="none" if promised else colour, edgecolor=colour,
            linewidth=1.0, hatch="///" if promised else None,
        )  # fmt: skip
    if line is not None:
        axes.axvline(line, color=TEXT, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(y=0.01)
    draw_legend(axes, columns=2)
    return to_svg(figure, salt)


def _short(name: str, most: int = 30) -> str:
    """A name of not too many letters: its end tells it from others."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
