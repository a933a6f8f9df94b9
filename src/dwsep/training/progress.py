"""Progress on the terminal: throughput, loss and time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dwsep.training.checkpoint import EpochRecord
from dwsep.training.data import Examples


class TrainingProgress:
    """Shows a bar over all steps of a run and one line per epoch, on standard error.

    Args:
        enabled: False shows nothing.
        total_steps: Steps of the whole run.
        done_steps: Steps that an earlier session has done.
        epochs: Epochs of the whole run.
        batch_size: Examples per step.
        unit: What an example is called.
    """

    def __init__(
        self,
        enabled: bool,
        *,
        total_steps: int,
        done_steps: int,
        epochs: int,
        batch_size: int,
        unit: str = "images",
    ) -> None:
        self._unit = unit
        self._epochs = epochs
        self._batch_size = batch_size
        self._steps = 0
        self._seconds = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            disable=not enabled,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done_steps, note="")

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def data(self, train_data: Examples, test_data: Examples) -> None:
        """Print what was read: a class that should not be there shows here."""
        if self._progress.disable:
            return
        names = train_data.class_names
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        self._progress.console.print(
            f"{train_data.name}: {len(train_data):,} {train_data.unit}, {test_data.name}: {len(test_data):,}, "
            f"{len(names)} classes: {shown}",
            soft_wrap=True,
            markup=False,
        )

    def step(self, epoch: int, loss: float, seconds: float) -> None:
        """Count one training step.

        Args:
            epoch: Number of the epoch, from 1.
            loss: Its loss.
            seconds: Its time.
        """
        self._steps += 1
        self._seconds += seconds
        rate = self._steps * self._batch_size / max(self._seconds, 1e-9)
        self._progress.update(
            self._task,
            advance=1,
            description=f"epoch {epoch}/{self._epochs}",
            note=f"loss {loss:.3f}  {rate:,.0f} {self._unit}/s",
        )

    def epoch(self, record: EpochRecord) -> None:
        """Print what an epoch did."""
        if self._progress.disable:
            return
        self._progress.console.print(
            f"epoch {record.epoch}/{self._epochs}  train loss {record.train_loss:.4f}  "
            f"test loss {record.test_loss:.4f}  test accuracy {100 * record.test_accuracy:.2f} %  "
            f"{_shown(record)}{record.seconds:.1f} s  {record.images_per_second:,.0f} {self._unit}/s",
            soft_wrap=True,
        )


def _shown(record: EpochRecord) -> str:
    iou = record.metrics.get("mean_iou")
    return "" if iou is None else f"test mIoU {100 * iou:.2f} %  "


class EvaluationProgress:
    """Shows a bar over the examples of an evaluation that takes longer than a second, on standard error.

    Args:
        enabled: False shows nothing.
        total: Examples in all.
        unit: What an example is called.
    """

    def __init__(self, enabled: bool, total: int, unit: str = "images") -> None:
        self._progress = Progress(
            TextColumn("evaluating"),
            BarColumn(bar_width=24),
            TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            disable=not enabled,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)
        self._start = time.perf_counter()
        self._shown = False

    def advance(self, images: int) -> None:
        """Count examples."""
        if not self._shown and time.perf_counter() - self._start > 1:
            self._progress.start()
            self._shown = True
        self._progress.update(self._task, advance=images)

    def close(self) -> None:
        """Remove the bar."""
        if self._shown:
            self._progress.stop()
