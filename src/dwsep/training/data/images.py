"""Reading single image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from dwsep.errors import unknown_name

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}
ON_BAD_FILE = ("stop", "skip")
T = TypeVar("T")
R = TypeVar("R")


def check_channels(in_channels: int) -> None:
    """Raise a ValueError unless images can be read with so many channels."""
    if in_channels not in MODES:
        raise ValueError(f"in_channels must be 1 or 3, got {in_channels!r}")


def pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two, or a ValueError."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(extent < 1 for extent in size):
        raise ValueError(f"image_size must be a positive number of pixels or a pair of them, got {image_size!r}")
    return size[0], size[1]


def files_in(folder: Path) -> list[Path]:
    """The images in a folder and its sub-folders, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def pillow() -> Any:
    """The module PIL with what is used of it, or an ImportError that names the extra."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError('images need Pillow; install it with: pip install "dwsep[train]"') from error
    import PIL

    return PIL


def open_upright(path: Path | BinaryIO, name: str = "") -> Any:
    """Open an image and turn it as its EXIF data say.

    Args:
        path: Where it is.
        name: What to call it where that is no path.

    Raises:
        ValueError: If it cannot be read; the message names it.
    """
    PIL = pillow()
    try:
        with PIL.Image.open(path) as opened:
            opened.load()
            # Cameras store the upright direction beside the pixels.
            return PIL.ImageOps.exif_transpose(opened) or opened
    except PIL.UnidentifiedImageError as error:
        empty = isinstance(path, Path) and path.stat().st_size == 0
        reason = "the file is empty" if empty else "it is in no format that Pillow knows"
        raise ValueError(f"cannot read image {name or path}: {reason}") from error
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {name or path}: {error}") from error


def read_image(path: Path, size: tuple[int, int], in_channels: int) -> Tensor:
    """Read an image, resized so that it covers a size, and cropped at the centre.

    Args:
        path: The file.
        size: Height and width.
        in_channels: 1 converts to grey, 3 to colour.

    Returns:
        Shape (in_channels, H, W), uint8.

    Raises:
        ValueError: If it cannot be read; the message names the file.
    """
    return fit(open_upright(path), size, in_channels)


def fit(image: Any, size: tuple[int, int], in_channels: int) -> Tensor:
    """A Pillow image, resized so that it covers (H, W), and cropped at the centre: (in_channels, H, W), uint8."""
    PIL = pillow()
    converted = image.convert(MODES[in_channels])
    return to_tensor(PIL.ImageOps.fit(converted, (size[1], size[0]), method=PIL.Image.Resampling.BILINEAR))


def to_tensor(image: Any) -> Tensor:
    """A Pillow image of bytes as a uint8 tensor of shape (C, H, W)."""
    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(height, width, -1).permute(2, 0, 1)


def read_all(
    paths: Sequence[T],
    read: Callable[[T], Tensor],
    on_bad_file: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Tensor], list[int], list[str]]:
    """Read files one by one.

    Args:
        paths: The files, or what else names an image.
        read: Called with each; raises a ValueError where it cannot read it.
        on_bad_file: "stop" to let that error pass, "skip" to go on without the file.
        on_progress: Called with the files read so far and their total.

    Returns:
        What was read, the positions in ``paths`` of what was, and the messages of the errors skipped.

    Raises:
        ValueError: If on_bad_file is unknown, a file is bad and is not to be skipped, or all files are.
    """
    _check_on_bad_file(on_bad_file)
    results, kept, faults = [], [], []
    for index, path in enumerate(paths):
        try:
            results.append(read(path))
            kept.append(index)
        except ValueError as error:
            if on_bad_file == "stop":
                raise
            faults.append(str(error))
        if on_progress is not None:
            on_progress(index + 1, len(paths))
    if not results:
        raise ValueError(f"none of {len(paths)} files can be read: {faults[0]}")
    return results, kept, faults


def read_each(paths: Iterable[T], read: Callable[[T], R], on_bad_file: str) -> Iterator[tuple[T, R]]:
    """Read files one by one, when each is asked for.

    Args:
        paths: The files, or what else names an image.
        read: Called with each; raises a ValueError where it cannot read it.
        on_bad_file: "stop" to let that error pass, "skip" to go on without the file, with a warning that names it.

    Yields:
        Each with what was read from it.

    Raises:
        ValueError: If on_bad_file is unknown, or a file is bad and is not to be skipped.
    """
    _check_on_bad_file(on_bad_file)
    for path in paths:
        try:
            found = read(path)
        except ValueError as error:
            if on_bad_file == "stop":
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        yield path, found


def _check_on_bad_file(on_bad_file: str) -> None:
    if on_bad_file not in ON_BAD_FILE:
        raise unknown_name("on_bad_file", on_bad_file, ON_BAD_FILE)
