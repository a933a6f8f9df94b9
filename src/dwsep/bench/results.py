"""The file of a run's results, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dwsep.analysis._files import write_text_atomically
from dwsep.analysis.ceilings import Ceilings
from dwsep.bench import costs
from dwsep.bench.networks import NETWORKS, NetworkTask, task_from_json
from dwsep.bench.peers import OURS
from dwsep.bench.registry import DEPTHWISE, SEPARABLE, SHORT

FORMAT = 1
RATIOS = ("best", "eager", "compile")
_EAGER = ("nchw", "channels_last")
# In the order in which tables are made of them: records that agree in all of these share one.
_SORTED = {None: 0, "separable": 0, "depthwise": 1, "short": 2, "network": 3, "float32": 0, "bfloat16": 1}
_GROUP = ("dtype", "training", "kind", "variant", "batch", "allocator")


def record_key(record: Mapping[str, Any]) -> str:
    """Tells a record from every other one of a run."""
    return f"{task_from_json(record['task']).key} {record['allocator']}"


def derive(record: Mapping[str, Any], ceilings: Ceilings) -> dict[str, Any]:
    """Computes what the timings of a record mean.

    Args:
        record: What :func:`dwsep.bench.measuring.compare` returned.
        ceilings: Of the machine that ran it.

    Returns:
        "macs", "bytes", "floor_seconds"; "best_peer" (its name); "ratios", the time of the best peer, of the better
        eager layout and of the compiled network over ours, so that more than 1 means that ours is faster; and
        "share_of_floor". For networks, whose memory traffic has no formula, without "bytes", and in training with
        "saved_share", what ours saves for backward over what eager PyTorch saves. What needs a missing figure is None.
    """
    times = {name: peer["median"] for name, peer in record["peers"].items() if peer["status"] == "ok"}
    ours = times.pop(OURS, None)
    cost = _costs(record, ceilings)
    floor = cost["floor_seconds"]

    def ratio(names: Iterable[str]) -> float | None:
        present = [times[name] for name in names if name in times]
        return min(present) / ours if present and ours is not None else None

    return {
        **cost,
        "best_peer": min(times, key=lambda name: times[name]) if times else None,
        "ratios": {"best": ratio(times), "eager": ratio(_EAGER), "compile": ratio(["compile"])},
        "share_of_floor": None if ours is None or floor is None else floor / ours,
    }


def _costs(record: Mapping[str, Any], ceilings: Ceilings) -> dict[str, Any]:
    task = task_from_json(record["task"])
    if not isinstance(task, NetworkTask):
        floor = costs.floor_seconds(task, ceilings)
        return {"macs": costs.macs(task), "bytes": costs.bytes_moved(task), "floor_seconds": floor}
    facts = record.get("network")  # missing where not even the truth could be computed
    if facts is None:
        return {"macs": None, "floor_seconds": None, "saved_share": None}
    macs = costs.network_macs(facts["macs"], task.training)
    saved = record["peers"].get(OURS, {}).get("saved_bytes")
    return {
        "macs": macs,
        "floor_seconds": 2 * macs / ceilings.peak(task.dtype),
        "saved_share": None if saved is None else saved / facts["eager_saved_bytes"],
    }


def group(records: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Sorts records into the tables they are shown in, keyed by dtype, training, kind, variant, batch, allocator.

    The depthwise cases of one variant share a table whatever their batches, which their own shapes fix.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    # A run that was continued has them in the order in which they were asked for.
    names = (*(case.name for case in SEPARABLE + DEPTHWISE + SHORT), *NETWORKS)
    places = {name: place for place, name in enumerate(names)}

    def place(record: Mapping[str, Any]) -> int:
        case = record["task"]["case"]
        return places.get(case.get("network", case["name"]), len(places))

    for record in sorted(records, key=place):
        case = record["task"]["case"]
        flat = {**record["task"], **case, "allocator": record["allocator"]}
        if case["kind"] == "depthwise":
            flat["batch"] = None
        groups.setdefault(tuple(flat[field] for field in _GROUP), []).append(record)
    return dict(sorted(groups.items(), key=lambda entry: [_SORTED.get(value, value) for value in entry[0]]))


def group_title(key: tuple[Any, ...]) -> str:
    """Names a group: "separable norm, inference, batch 8, float32, allocator default"."""
    dtype, training, kind, variant, batch, allocator = key
    parts = [f"{kind} {variant}".rstrip(), "training" if training else "inference"]
    parts += [] if batch is None else [f"batch {batch}"]
    return ", ".join([*parts, dtype, f"allocator {allocator}"])


def summarise(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Condenses each group of records.

    Returns:
        Per group "title", "cases", "share_of_floor" (geometric mean), and for each of :data:`RATIOS` None or a dict of
        "geomean", "minimum" and "slowest" (the case of the minimum).
    """
    rows = []
    for key, members in group(records).items():
        row: dict[str, Any] = {"title": group_title(key), "cases": len(members)}
        row["share_of_floor"] = geomean([record["derived"]["share_of_floor"] for record in members])
        for name in RATIOS:
            values = {
                record["task"]["case"]["name"]: record["derived"]["ratios"][name]
                for record in members
                if record["derived"]["ratios"][name] is not None
            }
            slowest = min(values, key=lambda case: values[case]) if values else None
            row[name] = slowest and {
                "geomean": geomean(values.values()),
                "minimum": values[slowest],
                "slowest": slowest,
            }
        rows.append(row)
    return rows


def geomean(values: Iterable[float | None]) -> float | None:
    """Geometric mean of what is there; None for nothing."""
    logarithms = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says once for each reason which peers have no time, and for how many comparisons."""
    counts: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        for name, peer in record["peers"].items():
            if peer["status"] != "ok":
                counts.setdefault((name, peer["status"], peer["reason"]), []).append(record["task"]["case"]["name"])
    lines = []
    for (name, status, reason), cases in counts.items():
        where = cases[0] if len(set(cases)) == 1 else f"{len(set(cases))} cases"
        lines.append(f"{name} {status} ({where}): {reason}")
    return lines


def save(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results; the file is replaced as a whole or not at all."""
    write_text_atomically(path, json.dumps(results, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Reads results.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds no results of dwsep bench: {error}") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT or "records" not in results:
        raise ValueError(f"{path} holds no results of dwsep bench in format {FORMAT}")
    return {"subject": "layers", **results}  # which files from before there were networks do not say
