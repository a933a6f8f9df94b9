"""The roofline: how fast each layer runs, over how much it computes per byte."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.analysis.ceilings import Ceilings
from dwsep.bench import costs
from dwsep.bench.peers import OURS, PEERS
from dwsep.bench.registry import Task
from dwsep.bench.results import group, group_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEER, _CEILING, _GRID, _JOIN = "#0a6ebd", "#c2571a", "#555555", "#e4e4e4", "#b9b9b9"
_PANEL = (6.4, 3.8)  # inches
_RESOLUTION = 130  # dots per inch


def require_matplotlib() -> None:
    """Makes sure that a plot can be drawn, so that a long run fails before it starts instead of at its end.

    Raises:
        ImportError: matplotlib is missing (extra "report").
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the plot needs matplotlib ({error}); install it with: pip install 'dwsep[report]'", name=error.name
        ) from error


def write_roofline(results: Mapping[str, Any], path: Path) -> None:
    """Draws one panel for each table of the results and writes them as one PNG file.

    A layer is a point for dwsep and one for its best peer, joined by a line, below what arithmetic and memory allow.

    Args:
        results: What :func:`dwsep.bench.run.run` returned.
        path: File to write; it is replaced as a whole or not at all.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: Nothing was timed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    groups = {
        key: points
        for key, members in group(results["records"]).items()
        if (points := [*filter(None, map(_point, members))])
    }
    if not groups:
        raise ValueError("nothing was timed, so that there is nothing to plot")
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(columns * _PANEL[0], rows * _PANEL[1]), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel, (key, points) in zip(panels, groups.items()):
        _draw(panel, points, Ceilings.from_json(results["ceilings"][key[0]]), key[0])
        panel.set_title(group_title(key), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "plot.png"
        figure.savefig(temporary, dpi=_RESOLUTION)
        os.replace(temporary, path)


def _point(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a record lies: operations per byte, and GFLOP/s of dwsep and of its best peer."""
    task, peers = Task.from_json(record["task"]), record["peers"]
    if peers.get(OURS, {}).get("status") != "ok":
        return None
    operations = 2 * costs.macs(task)
    best = record["derived"]["best_peer"]
    return {
        "name": task.case.name,
        "intensity": costs.intensity(task),
        "ours": operations / peers[OURS]["median"] / 1e9,
        "best": None if best is None else operations / peers[best]["median"] / 1e9,
        "best_label": None if best is None else PEERS[best].label,
    }


def _draw(axes: Axes, points: Sequence[Mapping[str, Any]], ceilings: Ceilings, dtype: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    peak = ceilings.peak(dtype) / 1e9
    low = min(point["intensity"] for point in points) / 1.6
    high = max(point["intensity"] for point in points) * 1.6
    speeds = [speed for point in points for speed in (point["ours"], point["best"]) if speed is not None]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(speeds) / 1.5, peak * 1.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _draw_ceilings(axes, ceilings, peak, low, high)
    numbered = sorted(points, key=lambda point: point["intensity"])
    xs = [point["intensity"] for point in numbered]
    for x, point in zip(xs, numbered):
        if point["best"] is not None:
            axes.plot([x, x], [point["best"], point["ours"]], color=_JOIN, linewidth=1.6, zorder=2)
    peers = [point["best"] or float("nan") for point in numbered]
    axes.scatter(xs, peers, s=26, facecolor="white", edgecolor=_PEER, zorder=3, label="best peer")
    axes.scatter(xs, [point["ours"] for point in numbered], s=26, color=_OURS, zorder=4, label="dwsep")
    _number(axes, numbered)
    axes.set_xlabel("operations per byte", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color=_GRID, linewidth=0.5)


def _draw_ceilings(axes: Axes, ceilings: Ceilings, peak: float, low: float, high: float) -> None:
    axes.axhline(peak, color=_CEILING, linewidth=1)
    text = f"peak {peak:.0f} GFLOP/s"
    axes.annotate(text, (high, peak), (-4, 3), textcoords="offset points", ha="right", fontsize=7.5)
    fastest, memory = max(ceilings.copy.values()), ceilings.memory_bandwidth
    for rate, style, what in ((memory, "-", "memory"), (fastest, "--", "caches")):
        xs = [low, max(peak * 1e9 / rate, low)]
        label = f"{what} {rate / 1e9:.0f} GB/s"
        axes.plot(xs, [x * rate / 1e9 for x in xs], color=_CEILING, linewidth=1, linestyle=style, label=label)


def _number(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Numbers the points from left to right, and lists beside the panel which is which, and how they compare."""
    placed: list[tuple[float, float]] = []
    lines = []
    for number, point in enumerate(points, start=1):
        top = max(point["ours"], point["best"] or 0)
        x, y = axes.transData.transform((point["intensity"], top))
        lift = 0
        while any(abs(x - other_x) < 11 and abs(y + lift - other_y) < 10 for other_x, other_y in placed):
            lift += 1
        placed.append((x, y + lift))
        axes.annotate(
            str(number),
            (point["intensity"], top),
            (0, 4 + lift * 72 / axes.figure.dpi),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            zorder=5,
        )
        compared = "" if point["best"] is None else f"  {point['ours'] / point['best']:.2f} x {point['best_label']}"
        lines.append(f"{number:>2}  {point['name']}{compared}")
    options: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 7, "va": "top"}
    axes.text(1.03, 1.0, "\n".join(lines), linespacing=1.5, **options)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(1.01, 0.0), frameon=False)
