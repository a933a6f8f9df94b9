"""``dwsep evaluate``: how well a trained network classifies images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dwsep.training.metrics import EvaluationResult


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="model.safetensors or checkpoint.safetensors of a run.")],
    data: Annotated[
        str, typer.Option(help="fashion-mnist-subset (comes with dwsep), fashion-mnist, or folder.")
    ] = "fashion-mnist-subset",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of IDX files, or of images with one sub-folder per class.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 250,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    memory_format: Annotated[str, typer.Option(help="channels_last or contiguous.")] = "channels_last",
    seed: Annotated[int, typer.Option(help="Seed that divided a folder without train and test sub-folders.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
) -> None:
    """Print a trained network's accuracy, and how each class fares."""
    import torch

    from dwsep import networks
    from dwsep.cli._console import output_console
    from dwsep.networks._weights import read_model
    from dwsep.training import evaluation
    from dwsep.training.config import TrainConfig
    from dwsep.training.data import Normalisation
    from dwsep.training.setup import load_data

    _, info = read_model(checkpoint)
    config = TrainConfig.model_validate(
        {
            "data": data,
            "data_dir": data_dir,
            "image_size": max(info.image_size),
            "in_channels": info.in_channels if data == "folder" else 3,
            "seed": seed,
            "precision": precision,
            "memory_format": memory_format,
        }
    )
    if threads is not None:
        torch.set_num_threads(threads)
    images = load_data(config, split)
    if images.in_channels != info.in_channels:
        raise ValueError(
            f"{checkpoint} takes images with {info.in_channels} channels, {images.name} has {images.in_channels}"
        )
    if images.class_names != info.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {', '.join(info.class_names)}; {images.name} has "
            f"{', '.join(images.class_names)}"
        )
    model = networks.create(
        info.network,
        num_classes=info.num_classes,
        in_channels=info.in_channels,
        weights=checkpoint,
        **info.options,
    )
    result = evaluation.evaluate(
        model.to(memory_format=evaluation.memory_format_of(config.memory_format)),  # type: ignore[call-overload]
        images,
        normalisation=Normalisation(info.mean, info.std),
        batch_size=batch_size,
        precision=config.precision,
        memory_format=config.memory_format,
        show_progress=True,
    )
    summary = _summary(result, info.network, str(checkpoint), images.name, info.class_names)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print(output_console(), summary)


def _summary(
    result: EvaluationResult, network: str, checkpoint: str, data: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    from dwsep.training.metrics import class_scores

    classes = [
        {
            "name": name,
            "images": score.images,
            "recall": _number(score.recall),
            "precision": _number(score.precision),
            "f1": _number(score.f1),
            "mistaken_for": None if score.mistaken_for is None else class_names[score.mistaken_for],
        }
        for name, score in zip(class_names, class_scores(result.confusion), strict=True)
    ]
    return {
        "network": network,
        "checkpoint": checkpoint,
        "data": data,
        "images": sum(entry["images"] for entry in classes),
        "accuracy": _number(result.accuracy),
        "loss": _number(result.loss),
        "classes": classes,
        "confusion": result.confusion.tolist(),
    }


def _number(value: float) -> float | None:
    # JSON knows no NaN.
    return value if value == value and abs(value) != float("inf") else None


def _print(console: Any, summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{summary['network']} on {summary['data']}"))
    table.add_column("class")
    for heading in ("images", "recall %", "precision %", "F1 %"):
        table.add_column(heading, justify="right")
    table.add_column("most mistaken for")
    for entry in summary["classes"]:
        scores = ["-" if entry[key] is None else f"{100 * entry[key]:.1f}" for key in ("recall", "precision", "f1")]
        table.add_row(escape(entry["name"]), f"{entry['images']:,}", *scores, escape(entry["mistaken_for"] or "-"))
    console.print(table)
    accuracy, loss = summary["accuracy"], summary["loss"]
    console.print(
        f"accuracy {100 * accuracy:.2f} %, loss {'not finite' if loss is None else f'{loss:.4f}'}, "
        f"{summary['images']:,} images"
    )
