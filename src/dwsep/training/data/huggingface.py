"""Data sets of Hugging Face's library: from the hub, or from a folder that it saved."""

from __future__ import annotations

import importlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep.errors import unknown_name
from dwsep.training.data.dataset import ImageDataset
from dwsep.training.data.images import check_channels, fit, open_upright, pair, pillow, read_all
from dwsep.training.data.splitting import class_names_of, divide, indices_of

PREFIX = "hf:"
_SPLITS = {"train": ("train",), "test": ("test", "validation", "val")}


def is_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path names such a data set: ``hf:NAME``, ``hf:NAME:CONFIGURATION`` or ``hf:FOLDER``."""
    return str(path).startswith(PREFIX)


def open_split(source: str | os.PathLike[str], split: str) -> Any | None:
    """Open one split.

    Args:
        source: ``hf:`` and a folder that ``save_to_disk`` made; or a name on the hub, behind which the name of a
            configuration may stand, with a colon between.
        split: "train" or "test", for which "validation" stands in.

    Returns:
        A ``datasets.Dataset``; None if split is "test" and there is none.

    Raises:
        ImportError: If datasets is not installed.
        FileNotFoundError: If there is no such data set.
        ValueError: If split is unknown, or there is no split for training.
    """
    if split not in _SPLITS:
        raise unknown_name("split", split, tuple(_SPLITS))
    datasets = _library(source)
    where = str(source).removeprefix(PREFIX)
    if Path(where).is_dir():
        found = datasets.load_from_disk(where)
    else:
        name, _, configuration = where.partition(":")
        found = datasets.load_dataset(name, configuration or None)
    if isinstance(found, datasets.Dataset):
        return found if split == "train" else None
    chosen = next((name for name in _SPLITS[split] if name in found), None)
    if chosen is None and split == "train":
        raise ValueError(f"{source} has the splits {', '.join(map(str, found))}; none of them is train")
    return None if chosen is None else found[chosen]


def column_of(data: Any, name: str, source: str | os.PathLike[str]) -> list[Any]:
    """A column's values, those of a class label as the class's name.

    Raises:
        ValueError: If there is no such column, or a label is missing.
    """
    if name not in data.column_names:
        raise ValueError(f"{source}: no column {name!r}, the columns are {', '.join(map(repr, data.column_names))}")
    names = getattr(data.features[name], "names", None)
    values = list(data[name])
    for index, value in enumerate(values):
        if value is None or (names is not None and not 0 <= value < len(names)):
            raise ValueError(f"{source}: row {index} has no {name}, got {value!r}")
    return values if names is None else [names[value] for value in values]


def load_hub_images(
    source: str | os.PathLike[str],
    split: str,
    *,
    image_size: int | tuple[int, int],
    in_channels: int = 3,
    label_column: str = "label",
    test_fraction: float = 0.2,
    seed: int = 0,
    on_bad_file: str = "stop",
) -> ImageDataset:
    """Load one split of labelled images; the image is the first column that holds images.

    Args:
        source: See :func:`open_split`.
        split: "train" or "test".
        image_size: Height and width in pixels; each image is resized so that it covers them, and cropped at the centre.
        in_channels: 1 converts to grey, 3 to colour.
        label_column: Name of the column of the labels.
        test_fraction: Share of each class that goes to the test split where there is none.
        seed: Decides that division.
        on_bad_file: "stop", or "skip" to leave unreadable images out, with a warning that names the first.

    Returns:
        The data set; its classes are in the order of the class labels, others as :func:`class_names_of` has them.

    Raises:
        ImportError: If datasets or Pillow is not installed.
        ValueError: If an option is out of range, there is no column of images or of labels, a label is missing, or an
            image is unreadable; the message names its row.
    """
    check_channels(in_channels)
    size = pair(image_size)
    train, test = open_split(source, "train"), open_split(source, "test")
    assert train is not None
    labels = column_of(train, label_column, source)
    names = tuple(getattr(train.features[label_column], "names", None) or class_names_of([str(v) for v in labels]))
    rows: list[int] | None = None
    data = train
    if test is not None and split == "test":
        data, labels = test, column_of(test, label_column, source)
    elif test is None:
        rows = divide([str(label) for label in labels], test_fraction, seed, str(source))[split]
    images = _undecoded(data, source)
    chosen = list(range(len(labels))) if rows is None else rows

    def read(row: int) -> Tensor:
        content = images[row]
        opened = open_upright(io.BytesIO(content["bytes"] or Path(content["path"]).read_bytes()), f"{source} row {row}")
        return fit(opened, size, in_channels)

    pixels, kept, faults = read_all(chosen, read, on_bad_file)
    if faults:
        warnings.warn(f"{len(faults)} of {len(chosen)} images were left out: {faults[0]}", stacklevel=2)
    indices = indices_of([str(labels[chosen[place]]) for place in kept], names, str(source))
    return ImageDataset(torch.stack(pixels), indices, names, f"{str(source).removeprefix(PREFIX)} {split}")


def _undecoded(data: Any, source: str | os.PathLike[str]) -> Any:
    """The column of images as bytes or paths, so that one that cannot be read is told from the others."""
    datasets = _library(source)
    pillow()
    name = next((name for name, feature in data.features.items() if isinstance(feature, datasets.Image)), None)
    if name is None:
        raise ValueError(f"{source}: no column holds images; the columns are {', '.join(map(repr, data.column_names))}")
    return data.cast_column(name, datasets.Image(decode=False))[name]


def _library(source: str | os.PathLike[str]) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f'{source} needs datasets; install it with: pip install "dwsep[datasets]"') from error
