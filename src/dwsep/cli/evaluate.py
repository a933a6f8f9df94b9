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
        str,
        typer.Option(
            help="fashion-mnist-subset (comes with dwsep), fashion-mnist, folder, hf:NAME; or, for networks of other "
            "tasks, their data's path."
        ),
    ] = "fashion-mnist-subset",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of IDX files, or of images with one sub-folder per class.")
    ] = None,
    test_data: Annotated[Path | None, typer.Option(help="The test split of texts or series.")] = None,
    text_column: Annotated[str, typer.Option(help="Column, or key, of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column, or key, of the labels.")] = "label",
    encoding: Annotated[str, typer.Option(help="Of files of texts.")] = "utf-8",
    split: Annotated[str, typer.Option(help="test or train; val, too, for masks.")] = "test",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples per batch.", show_default="250")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    memory_format: Annotated[str, typer.Option(help="channels_last or contiguous.")] = "channels_last",
    on_bad_file: Annotated[str, typer.Option(help="stop at an image that cannot be read, or skip it.")] = "stop",
    seed: Annotated[int, typer.Option(help="Seed that divided data without a test split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
) -> None:
    """Print a trained network's accuracy, and how each class fares."""
    import torch

    from dwsep import networks
    from dwsep.cli._console import output_console
    from dwsep.networks._weights import read_model
    from dwsep.training import evaluation
    from dwsep.training.config import make_config
    from dwsep.training.data import Normalisation
    from dwsep.training.data.huggingface import PREFIX, is_hub
    from dwsep.training.setup import load_data

    _, info = read_model(checkpoint)
    values: dict[str, Any] = {"task": info.task, "data": data, "seed": seed}
    values |= {"precision": precision, "memory_format": memory_format}
    if info.task in ("classify", "segment"):
        values["on_bad_file"] = on_bad_file
    elif on_bad_file != "stop":
        raise ValueError(f"on_bad_file: {checkpoint} is of the task {info.task}, which has no images")
    if info.task == "classify":
        values |= {"data_dir": data_dir, "image_size": max(info.image_size), "label_column": label_column}
        if is_hub(data):
            values |= {"data": "huggingface", "data_dir": data.removeprefix(PREFIX)}
        values["in_channels"] = info.in_channels if values["data"] in ("folder", "huggingface") else 3
    elif data == "fashion-mnist-subset":
        raise ValueError(f"{checkpoint} is of the task {info.task}: --data must name its data")
    elif info.task == "segment":
        values |= {"in_channels": info.in_channels, "image_size": info.image_size}
        values["ignore_index"] = info.extra["ignore_index"]
    else:
        values["test_data"] = test_data
        if info.task == "text":
            values |= {"text_column": text_column, "label_column": label_column, "encoding": encoding}
    config = make_config(values)
    if threads is not None:
        torch.set_num_threads(threads)
    images = load_data(config, split, info)
    channels = images.describe().get("in_channels", 0)
    if channels != info.in_channels:
        raise ValueError(
            f"{checkpoint} takes {images.unit} with {info.in_channels} channels, {images.name} has {channels}"
        )
    if images.class_names != info.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {', '.join(info.class_names)}; {images.name} has "
            f"{', '.join(images.class_names)}"
        )
    model = networks.load_model(checkpoint)
    result = evaluation.evaluate(
        model.to(memory_format=evaluation.memory_format_of(config.memory_format)),  # type: ignore[call-overload]
        images,
        normalisation=Normalisation(info.mean, info.std),
        batch_size=batch_size or (16 if info.task == "segment" else 250),
        precision=config.precision,
        memory_format=config.memory_format,
        show_progress=True,
    )
    summary = _summary(result, info.network, str(checkpoint), images.name, info.class_names)
    summary["images"] = len(images)
    if info.task == "segment":
        summary["mean_iou"] = _number(result.mean_iou)
        for entry, iou in zip(summary["classes"], result.class_iou, strict=True):
            entry["iou"] = _number(iou)
    summary["unit"] = images.unit
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
    scored = ["recall", "precision", "f1", *(["iou"] if "mean_iou" in summary else [])]
    headings = {"recall": "recall %", "precision": "precision %", "f1": "F1 %", "iou": "IoU %"}
    counted = "pixels" if "mean_iou" in summary else summary["unit"]
    for heading in (counted, *(headings[key] for key in scored)):
        table.add_column(heading, justify="right")
    table.add_column("most mistaken for")
    for entry in summary["classes"]:
        scores = ["-" if entry[key] is None else f"{100 * entry[key]:.1f}" for key in scored]
        table.add_row(escape(entry["name"]), f"{entry['images']:,}", *scores, escape(entry["mistaken_for"] or "-"))
    console.print(table)
    accuracy, loss = summary["accuracy"], summary["loss"]
    console.print(
        (f"mIoU {100 * summary['mean_iou']:.2f} %, " if summary.get("mean_iou") is not None else "")
        + f"accuracy {100 * accuracy:.2f} %, loss {'not finite' if loss is None else f'{loss:.4f}'}, "
        f"{summary['images']:,} {summary['unit']}"
    )
