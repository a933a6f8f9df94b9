"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dwsep


def versions() -> dict[str, str]:
    """Collect the versions that a result depends on.

    Returns:
        Name to version.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dwsep": dwsep.__version__,
        "platform": platform.platform(),
    }


class RunLog:
    """Appends records to a JSON-lines file; every record is on disk when :meth:`write` returns.

    Args:
        path: The file.
        history: None starts the file anew. For a run that goes on, the epochs that its checkpoint knows of: records of
            later epochs are dropped, and records that a crash kept from being written are added.
    """

    def __init__(self, path: Path, history: list[dict[str, Any]] | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if history is None else _reconcile(read_log(path), history)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(temporary, path)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record with its type and time.

        Args:
            kind: The record's type.
            **values: What it holds; must be encodable as JSON.
        """
        record = {"type": kind, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Scalars:
    """Writes the numbers of every epoch for TensorBoard.

    Args:
        folder: Where its files go.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('scalars need TensorBoard; install it with: pip install "dwsep[tensorboard]"') from error
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, epoch: int, record: dict[str, Any], prefix: str = "") -> None:
        """Write the numbers of a record, those in a mapping under its name."""
        for name, value in record.items():
            if isinstance(value, dict):
                self.write(epoch, value, f"{prefix}{name}/")
            elif isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(prefix + name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _reconcile(records: list[dict[str, Any]], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [r for r in records if r.get("epoch", 0) <= len(history)]
    logged = {r["epoch"] for r in kept if r.get("type") == "epoch"}
    return kept + [{"type": "epoch", **record} for record in history if record["epoch"] not in logged]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log, leaving out a last line that a crash cut short.

    Args:
        path: The file; one that does not exist counts as empty.

    Returns:
        The records in order.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
