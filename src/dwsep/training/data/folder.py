"""A folder of images, one sub-folder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from dwsep.errors import unknown_name
from dwsep.training.data.dataset import ImageDataset
from dwsep.training.data.images import IMAGE_SUFFIXES, check_channels, files_in, pair, read_all, read_image

_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "validation")}


def load_image_folder(
    data_dir: str | os.PathLike[str],
    split: str,
    *,
    image_size: int | tuple[int, int],
    in_channels: int = 3,
    test_fraction: float = 0.2,
    seed: int = 0,
    on_bad_file: str = "stop",
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageDataset:
    """Load one split of a folder of images with one sub-folder per class; classes are in alphabetical order.

    If the folder has sub-folders train and test (or val), those are the splits. Otherwise every class is divided, the
    same way for the same seed. Each image is resized so that it covers image_size, and cropped at the centre.

    Args:
        data_dir: The folder.
        split: "train" or "test".
        image_size: Height and width in pixels; one number for a square.
        in_channels: 1 converts to grey, 3 to colour.
        test_fraction: Share of each class that goes to the test split where the folder has no splits; each class keeps
            at least one image on either side.
        seed: Decides that division.
        on_bad_file: "stop", or "skip" to leave unreadable images out, with a warning that names the first.
        on_progress: Called with the images read so far and their total.

    Returns:
        The data set, images of shape (N, in_channels, H, W).

    Raises:
        ImportError: If Pillow is not installed.
        FileNotFoundError: If the folder does not exist or has only one of the two splits.
        ValueError: If an option is out of range, a class is empty, or an image is unreadable (the message names it).
    """
    if split not in _SPLIT_FOLDERS:
        raise unknown_name("split", split, tuple(_SPLIT_FOLDERS))
    check_channels(in_channels)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    size = pair(image_size)
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    class_names, files = _list_split(root, split, test_fraction, seed)
    images, kept, faults = read_all(
        [path for path, _ in files], lambda path: read_image(path, size, in_channels), on_bad_file, on_progress
    )
    if faults:
        warnings.warn(f"{len(faults)} of {len(files)} images were left out: {faults[0]}", stacklevel=2)
    labels = torch.tensor([files[index][1] for index in kept], dtype=torch.int64)
    return ImageDataset(torch.stack(images), labels, class_names, f"{root.name} {split}")


def _list_split(root: Path, split: str, test_fraction: float, seed: int) -> tuple[tuple[str, ...], list]:
    folders = {which: _first_folder(root, names) for which, names in _SPLIT_FOLDERS.items()}
    present = [which for which, folder in folders.items() if folder is not None]
    if len(present) == 1:
        missing = "test" if present == ["train"] else "train"
        raise FileNotFoundError(
            f"{root} has {folders[present[0]]} but no sub-folder for the {missing} split, "
            f"named {' or '.join(_SPLIT_FOLDERS[missing])}"
        )
    if present:
        train_root, split_root = folders["train"], folders[split]
        assert train_root is not None
        assert split_root is not None
        class_names = _class_names(train_root)
        other = _class_names(split_root)
        if other != class_names:
            raise ValueError(
                f"{split_root} has the classes {', '.join(other)} but {train_root} has {', '.join(class_names)}"
            )
        listing = [_images_of(split_root / name) for name in class_names]
    else:
        class_names = _class_names(root)
        listing = [
            _divide(_images_of(root / name), split, test_fraction, seed + index)
            for index, name in enumerate(class_names)
        ]
    return class_names, [(path, label) for label, paths in enumerate(listing) for path in paths]


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_names(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise ValueError(f"{root} is empty: it needs one sub-folder of images per class")
    return names


def _images_of(folder: Path) -> list[Path]:
    files = files_in(folder)
    if not files:
        raise ValueError(f"class folder {folder} has no images; known suffixes: {', '.join(IMAGE_SUFFIXES)}")
    return files


def _divide(files: list[Path], split: str, test_fraction: float, seed: int) -> list[Path]:
    if len(files) < 2:
        raise ValueError(f"{files[0].parent} has one image; a class needs at least two, one to train and one to test")
    test_count = min(max(1, round(len(files) * test_fraction)), len(files) - 1)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = order[:test_count] if split == "test" else order[test_count:]
    return [files[i] for i in sorted(chosen)]
