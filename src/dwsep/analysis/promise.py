"""The promise: how many multiply-adds a separable network saves, and how much of that arrives as speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def summarise_promise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the separable rows with the dense one.

    Args:
        rows: Rows with "key", "label", "group" ("dense", "eager" or "dwsep"), "macs", "macs_spatial",
            "epoch_seconds" and "latency" (batch size as text -> {"median": seconds, ...}). There is one dense row; of
            several rows in the eager group each figure is taken from the fastest, so that the comparison is with the
            best layout rather than a convenient one.

    Returns:
        "macs_ratio" (whole network), "macs_ratio_spatial" (3x3 layers and their stand-ins) and "speedups": one entry
        per group with "group", "label", the speed-ups "training", "batch_1" and "batch_64", and "best", which names
        the row that each figure comes from.

    Raises:
        ValueError: There is not exactly one dense row, or no separable one.
    """
    dense_rows = [row for row in rows if row["group"] == "dense"]
    separable = [row for row in rows if row["group"] != "dense"]
    if len(dense_rows) != 1 or not separable:
        raise ValueError(
            f"rows must hold one dense row and at least one separable row, got {len(dense_rows)} and {len(separable)}"
        )
    dense = dense_rows[0]
    speedups = []
    for group in dict.fromkeys(row["group"] for row in separable):
        candidates = [row for row in separable if row["group"] == group]
        entry: dict[str, Any] = {"group": group, "best": {}}
        entry["label"] = candidates[0]["label"] if len(candidates) == 1 else "separable, PyTorch (best layout)"
        for metric in ("training", "batch_1", "batch_64"):
            best = min(candidates, key=lambda row: _seconds(row, metric))
            entry[metric] = _seconds(dense, metric) / _seconds(best, metric)
            entry["best"][metric] = best["label"]
        speedups.append(entry)
    return {
        "macs_ratio": dense["macs"] / separable[0]["macs"],
        "macs_ratio_spatial": dense["macs_spatial"] / separable[0]["macs_spatial"],
        "speedups": speedups,
    }


def _seconds(row: Mapping[str, Any], metric: str) -> float:
    if metric == "training":
        return row["epoch_seconds"]
    return row["latency"][metric.removeprefix("batch_")]["median"]
