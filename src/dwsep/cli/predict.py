"""``dwsep predict``: what a trained network says of images, texts and series."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dwsep.training.prediction import Prediction, Predictor

_TABLES = (".csv", ".tsv", ".tab", ".jsonl")


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Images or folders of them; texts, or files of texts; .ts or .npz files; - for lines."),
    ] = None,
    checkpoint: Annotated[Path, typer.Option(help="model.safetensors of a run.")] = Path(
        "runs/train/model.safetensors"
    ),
    output_dir: Annotated[Path, typer.Option(help="Folder for masks and overlays.")] = Path("predictions"),
    text_column: Annotated[str, typer.Option(help="Column, or key, of the texts in tables.")] = "text",
    encoding: Annotated[str, typer.Option(help="Of files of texts.")] = "utf-8",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input.")] = False,
    accelerate: Annotated[bool, typer.Option("--accelerate/--no-accelerate", help="Run accelerated.")] = True,
    on_bad_file: Annotated[str, typer.Option(help="stop at an image that cannot be read, or skip it.")] = "stop",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
) -> None:
    """Print the label of every image, text or series; of segmentation networks, write masks and overlays as PNG."""
    import torch

    from dwsep.cli._console import plain_warnings
    from dwsep.training.prediction import Predictor

    if not inputs:
        raise ValueError("predict needs at least one input")
    if threads is not None:
        torch.set_num_threads(threads)
    predictor = Predictor(checkpoint, accelerate=accelerate)
    with plain_warnings():
        if predictor.task == "segment":
            _masks(predictor, inputs, output_dir, as_json, on_bad_file)
            return
        total, predictions = _labels(predictor, inputs, text_column, encoding, on_bad_file)
        for prediction in _with_progress(predictions, total):
            _print(prediction, as_json)


def _print(prediction: Prediction, as_json: bool) -> None:
    if as_json:
        values = {"input": prediction.source, "label": prediction.label, "probability": prediction.probability}
        print(json.dumps({**values, "probabilities": prediction.probabilities}, ensure_ascii=False))
    else:
        source = prediction.source if len(prediction.source) <= 60 else f"{prediction.source[:57]}..."
        print(f"{prediction.label}\t{100 * prediction.probability:.1f} %\t{source}")


def _labels(
    predictor: Predictor, inputs: list[str], text_column: str, encoding: str, on_bad_file: str
) -> tuple[int | None, Iterator[Prediction]]:
    from dwsep.training.prediction import image_files

    if predictor.task == "classify":
        files = image_files([Path(entry) for entry in _lines(inputs)])
        return len(files), predictor.images(files, on_bad_file=on_bad_file)
    if predictor.task == "text":
        texts = [text for entry in inputs for text in _texts(entry, text_column, encoding)]
        return len(texts), predictor.texts(texts)
    return None, (prediction for entry in inputs for prediction in predictor.series(Path(entry)))


def _lines(inputs: list[str]) -> list[str]:
    """The inputs, with the lines of standard input in place of a dash."""
    return [
        line
        for entry in inputs
        for line in (sys.stdin.read().splitlines() if entry == "-" else [entry])
        if line.strip()
    ]


def _texts(entry: str, text_column: str, encoding: str) -> list[str]:
    """An input's texts: the column of a table, the lines of another file or of standard input, or the input itself."""
    from dwsep.training.data.files import read_file
    from dwsep.training.data.text import read_texts

    if entry == "-":
        return _lines([entry])
    path = Path(entry)
    if path.suffix.lower() in (*_TABLES, ".txt") or (len(entry) < 255 and path.is_file()):
        if path.suffix.lower() in _TABLES:
            return read_texts(path, text_column=text_column, encoding=encoding)
        lines = [line for line in read_file(path, encoding).splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{path} is empty: it has no line of text")
        return lines
    if len(entry) < 255 and path.is_dir():
        raise ValueError(f"{path} is a folder; the network takes texts, and files of them")
    return [entry]


def _masks(predictor: Predictor, inputs: list[str], output_dir: Path, as_json: bool, on_bad_file: str) -> None:
    from dwsep.training.data.images import read_each
    from dwsep.training.prediction import image_files, write_mask, write_overlay

    given = [Path(entry) for entry in _lines(inputs)]
    # What an earlier call wrote into a folder of images is none of them.
    written = output_dir.resolve()
    files = [path for path in image_files(given) if path in given or written not in path.resolve().parents]
    stems = {path.stem for path in files}
    output_dir.mkdir(parents=True, exist_ok=True)
    palette = predictor.palette()
    masks = read_each(files, predictor.mask, on_bad_file)
    for number, (path, (image, classes)) in enumerate(_with_progress(masks, len(files))):
        # Images of one name in different folders must not replace each other.
        name = path.stem if len(stems) == len(files) else f"{number:05d}-{path.stem}"
        mask, overlay = output_dir / f"{name}.png", output_dir / f"{name}-overlay.png"
        write_mask(mask, classes, palette)
        write_overlay(overlay, image, classes, palette)
        counts = classes.flatten().bincount(minlength=len(palette)).tolist()
        shares = {n: count / classes.numel() for n, count in zip(predictor.info.class_names, counts, strict=True)}
        if as_json:
            print(json.dumps({"input": str(path), "mask": str(mask), "overlay": str(overlay), "shares": shares}))
        else:
            shown = ", ".join(f"{n} {100 * share:.1f} %" for n, share in shares.items() if share)
            print(f"{mask}\t{shown}\t{path}")


def _with_progress(entries: Iterator[Any], total: int | None) -> Iterator[Any]:
    from dwsep.cli._console import make_progress, progress_console

    console = progress_console()
    if total == 1 or not console.is_terminal:
        yield from entries
        return
    with make_progress(console) as progress:
        task = progress.add_task("predicting", total=total, note="")
        for entry in entries:
            yield entry
            progress.advance(task)
