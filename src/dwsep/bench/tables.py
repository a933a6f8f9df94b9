"""Results as tables of text, which a terminal and a page show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dwsep.bench.peers import PEERS
from dwsep.bench.results import RATIOS, group, group_title, summarise

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Text in columns.

    Attributes:
        title: What the rows have in common.
        headings: One a column.
        rows: One string a column.
        best: Per row the number of the column that holds the best peer's time, or None.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int | None, ...]


def result_tables(records: Sequence[Mapping[str, Any]], *, all_ratios: bool = True) -> list[Table]:
    """Makes one table for each group of records: milliseconds per peer, and what follows from them.

    Args:
        records: With "derived".
        all_ratios: Whether the ratios to eager PyTorch and to the compiled network have columns, too.

    Returns:
        The tables, in the order of :func:`dwsep.bench.results.group`.
    """
    return [_result_table(group_title(key), members, all_ratios) for key, members in group(records).items()]


def _result_table(title: str, members: Sequence[Mapping[str, Any]], all_ratios: bool) -> Table:
    peers = [name for name in PEERS if any(_concerns(record, name) for record in members)]
    # a peer that is compared with itself alone says nothing
    ratios = [name for name in (RATIOS if all_ratios else RATIOS[:1]) if any(_ratio(r, name) for r in members)]
    networks = members[0]["task"]["case"]["kind"] == "network"
    saved = networks and members[0]["task"]["training"]
    rows, best = [], []
    for record in members:
        case, derived = record["task"]["case"], record["derived"]
        name = f"{case['name']} b{case['batch']}" if case["kind"] == "depthwise" else case["name"]
        times = [_time(record["peers"].get(peer)) for peer in peers]
        extra = (_share(derived["saved_share"]),) if saved else ()
        extra += (_seconds(derived["floor_seconds"]),) if networks else ()
        rows.append((name, *times, *(format_ratio(_ratio(record, r)) for r in ratios), *extra, _percent(derived)))
        best.append(1 + peers.index(derived["best_peer"]) if derived["best_peer"] else None)
    extra = (*(["saved"] if saved else []), *(["floor ms"] if networks else []))
    first = "network" if networks else "layer"
    headings = (first, *(PEERS[name].label for name in peers), *(f"x {name}" for name in ratios), *extra, "floor")
    return Table(title, headings, tuple(rows), tuple(best))


def summary_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Makes the table of geometric means and minima over the cases of each group."""
    summaries = summarise(records)
    ratios = [name for name in RATIOS if any(summary[name] for summary in summaries)]
    rows = []
    for summary in summaries:
        cells = [summary["title"], str(summary["cases"])]
        for name in ratios:
            values = summary[name] or {"geomean": None, "minimum": None, "slowest": None}
            cells += [format_ratio(values["geomean"]), format_ratio(values["minimum"])]
        cells += [(summary["best"] or {}).get("slowest") or MISSING, _share(summary["share_of_floor"])]
        rows.append(tuple(cells))
    headings = ["", "cases"]
    for name in ratios:
        headings += [f"x {name}", "min"]
    return Table("summary", (*headings, "slowest case", "floor"), tuple(rows), (None,) * len(rows))


def format_seconds(seconds: float) -> str:
    """Formats seconds as milliseconds with three significant digits: 0.0001234 -> "0.123"."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f}"


def format_ratio(ratio: float | None) -> str:
    """Formats how many times faster something is."""
    return MISSING if ratio is None else f"{ratio:.2f}"


def _concerns(record: Mapping[str, Any], name: str) -> bool:
    return record["peers"].get(name, {}).get("status", "unavailable") != "unavailable"


def _time(peer: Mapping[str, Any] | None) -> str:
    if peer is None or peer["status"] == "unavailable":
        return MISSING
    return format_seconds(peer["median"]) if peer["status"] == "ok" else peer["status"]


def _ratio(record: Mapping[str, Any], name: str) -> float | None:
    return record["derived"]["ratios"][name]


def _percent(derived: Mapping[str, Any]) -> str:
    return _share(derived["share_of_floor"])


def _seconds(seconds: float | None) -> str:
    return MISSING if seconds is None else format_seconds(seconds)


def _share(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.0f} %"
