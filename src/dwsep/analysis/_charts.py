"""Charts as inline SVG whose colours the page decides, so that one file is legible on a light and on a dark screen."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib writes fixed colours; these stand for CSS values and are replaced in the finished SVG.
TEXT = "#010203"
GRID = "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
PROMISE = "#0a0b05"
_CSS = {
    TEXT: "currentColor",
    GRID: "var(--grid)",
    PROMISE: "var(--promise)",
    **{colour: f"var(--series-{index + 1})" for index, colour in enumerate(SERIES)},
}
_SIZE = (4.8, 3.5)  # inches; small, so that text stays readable when a phone scales the chart to its width


def accuracy_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws test accuracy over epochs, one curve per row of the results.

    Args:
        rows: Rows with "label" and "history", a list of records with "epoch" (from 1) and "test_accuracy".

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = make_figure("accuracy")
    styles = ("-", "--", "-.", ":")
    last_epoch = 1
    for index, row in enumerate(rows):
        epochs = [record["epoch"] for record in row["history"]]
        percent = [100 * record["test_accuracy"] for record in row["history"]]
        last_epoch = max([last_epoch, *epochs])
        axes.plot(
            epochs,
            percent,
            color=SERIES[index % len(SERIES)],
            linestyle=styles[index % len(styles)],
            marker="o",
            markersize=3,
            linewidth=1.8,
            label=row["label"],
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy in %")
    axes.set_xticks(range(1, last_epoch + 1, max(1, last_epoch // 8)))
    draw_legend(axes, columns=1 if len(rows) < 3 else 2)
    return to_svg(figure, "accuracy")


def speedup_chart(promise: Mapping[str, Any]) -> str:
    """Draws the speed-ups measured beside the one that the multiply-adds promise.

    Args:
        promise: "macs_ratio" and "speedups", a list of entries with "label" and "training", "batch_1", "batch_64".

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = make_figure("speedup")
    groups = {"training": "training\nepoch", "batch_1": "inference\nbatch 1", "batch_64": "inference\nbatch 64"}
    promised_everywhere: dict[str, Any] = dict.fromkeys(groups, promise["macs_ratio"])
    series: list[tuple[str, str, Mapping[str, Any]]] = [("promised by macs", PROMISE, promised_everywhere)]
    for entry, colour in zip(promise["speedups"], (SERIES[2], SERIES[3]), strict=True):
        series.append((entry["label"], colour, entry))
    width = 0.8 / len(series)
    for index, (label, colour, values) in enumerate(series):
        promised = colour == PROMISE
        bars = axes.bar(
            [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))],
            [values[group] for group in groups],
            width * 0.92,
            label=label,
            facecolor="none" if promised else colour,
            edgecolor=colour,
            linewidth=1.2,
            hatch="///" if promised else None,
        )
        axes.bar_label(bars, fmt=_times, padding=2, fontsize=8.5, color=TEXT)
    axes.axhline(1, color=TEXT, linewidth=0.9, linestyle=":")
    axes.set_xticks(range(len(groups)), list(groups.values()))
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("times faster than dense")
    axes.margins(y=0.12)
    draw_legend(axes, columns=2)
    return to_svg(figure, "speedup")


def _times(factor: float) -> str:
    return f"{factor:.{1 if factor >= 1 else 2}f}\N{MULTIPLICATION SIGN}"


def make_figure(salt: str, size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    """Makes a figure with one pair of axes in the page's colours; ``size`` is in inches."""
    # The object interface alone: no pyplot, thus no display and no state shared with the caller's own figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.tick_params(colors=TEXT, color=GRID, labelsize=9.5)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_gid(f"axes-{salt}")
    return figure, axes


def draw_legend(axes: Axes, columns: int) -> None:
    """Draws a legend above the axes."""
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, labelcolor=TEXT, fontsize=8.5
    )


def to_svg(figure: Figure, salt: str) -> str:
    """Turns a figure into an ``<svg>`` element; ``salt`` tells its ids from those of other charts of the page."""
    import matplotlib

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # the salt makes the ids the same from run to run
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")  # not needed inside HTML
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{salt}-", svg)  # two charts share one page
    # the page scales the chart: width and height in points would fix it
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"', r"\1", svg, count=2)
