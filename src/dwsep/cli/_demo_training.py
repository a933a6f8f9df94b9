"""Trains the rows of the demo in turns, an epoch each, so that a machine that slows down is fair to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.cli._console import make_progress
from dwsep.cli._demo_rows import ROWS, Row, build
from dwsep.cli._demo_state import UnfinishedRun

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from dwsep.training.checkpoint import EpochRecord
    from dwsep.training.config import TrainConfig
    from dwsep.training.data import ImageDataset


@dataclass(frozen=True)
class TrainedRow:
    """A row after training.

    Attributes:
        model: The trained network.
        history: One record per epoch.
        test_accuracy: Accuracy on the test images after the last epoch, 0 to 1.
        normalisation: Turns uint8 images into what the network takes.
        input_shape: Shape of one input image with its batch axis.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    test_accuracy: float
    normalisation: Callable[[Tensor], Tensor]
    input_shape: tuple[int, ...]


class _Pause(Exception):
    """Ends a call of the training loop after an epoch; its checkpoint is written by then."""


def train_rows(
    config: dict[str, Any], data: dict[str, ImageDataset], unfinished: UnfinishedRun, console: Console
) -> dict[str, TrainedRow]:
    """Trains every row for the same epochs, in turns.

    The loop continues from its checkpoint bit for bit, so that taking turns changes no result.

    Args:
        config: Settings of training, the same for all rows.
        data: Images by split, "train" and "test".
        unfinished: Where the checkpoints lie, perhaps with some epochs done.
        console: Console for progress.

    Returns:
        The rows by their keys.
    """
    models = {row.key: _build(row, config, data["train"]) for row in ROWS}
    trained: dict[str, TrainedRow] = {}
    steps = len(data["train"]) // config["batch_size"]
    with make_progress(console) as progress:
        task = progress.add_task("training", total=steps * config["epochs"] * len(ROWS), note="")
        epochs_done = dict.fromkeys(models, 0)

        def count_step(module: nn.Module, _: object) -> None:
            if module.training:
                progress.advance(task)

        handles = [model.register_forward_pre_hook(count_step) for model in models.values()]
        try:
            while len(trained) < len(ROWS):
                for row in ROWS:
                    if row.key in trained:
                        continue
                    epoch = min(epochs_done[row.key] + 1, config["epochs"])
                    progress.update(task, note=f"{row.label}, epoch {epoch} of {config['epochs']}")
                    outcome = _train_epoch(row, models[row.key], config, data, unfinished)
                    if isinstance(outcome, TrainedRow):
                        trained[row.key] = outcome
                        epochs_done[row.key] = config["epochs"]
                    else:
                        epochs_done[row.key] = outcome.epoch
                    # an interrupted run has done steps that this session did not count
                    progress.update(task, completed=steps * sum(epochs_done.values()))
                    unfinished.save()
        finally:
            for handle in handles:
                handle.remove()
        progress.update(task, note="done")
    return trained


def training_settings(row: Row, config: dict[str, Any], folder: Path) -> TrainConfig:
    """The settings of a row's training.

    Args:
        row: Which row.
        config: Settings of training, the same for all rows.
        folder: Where the loop keeps its checkpoint.

    Returns:
        The settings.

    Raises:
        ValueError: A setting is out of range.
    """
    from dwsep.training.config import TrainConfig

    fields = {name: value for name, value in config.items() if name in TrainConfig.model_fields}
    own = {"network": row.network, "memory_format": row.memory_format, "output_dir": folder}
    return TrainConfig(**{**fields, **own})


def _build(row: Row, config: dict[str, Any], data: ImageDataset) -> nn.Module:
    return build(
        row,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        options=config["network_options"],
        seed=config["seed"],
    )


def _train_epoch(
    row: Row, model: nn.Module, config: dict[str, Any], data: dict[str, ImageDataset], unfinished: UnfinishedRun
) -> TrainedRow | EpochRecord:
    """Trains one epoch; the last one gives the finished row."""
    from dwsep.training.loop import CHECKPOINT_FILE, train

    folder = unfinished.row_folder(row.key)
    settings = training_settings(row, config, folder)
    last: list[EpochRecord] = []

    def pause(record: EpochRecord) -> None:
        last.append(record)
        if record.epoch < settings.epochs:
            raise _Pause

    try:
        result = train(
            model,
            data["train"],
            data["test"],
            settings,
            resume=(folder / CHECKPOINT_FILE).exists(),
            overwrite=True,
            show_progress=False,
            on_epoch=pause,
        )
    except _Pause:
        return last[-1]
    return TrainedRow(
        model=model,
        history=[asdict(record) for record in result.history],
        test_accuracy=result.final.accuracy,
        normalisation=result.normalisation,
        input_shape=(1, data["test"].in_channels, *data["test"].image_size),
    )
