"""Images with a mask beside each, which says the class of every pixel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep.errors import unknown_name
from dwsep.training.data.augmentation import augment_pair
from dwsep.training.data.dataset import channel_statistics
from dwsep.training.data.examples import Examples, Normalisation, digest_of
from dwsep.training.data.files import read_file
from dwsep.training.data.images import MODES, check_channels, files_in, open_upright, pair, pillow, read_all, to_tensor

IGNORE = 255
CLASSES_FILE = "classes.txt"
# Where each split lies; what is asked for and absent is taken from the next.
_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "test"), "test": ("test", "val", "validation")}
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class SegmentationDataset(Examples):
    """Images of one size with a class for every pixel, held in memory.

    Args:
        images: Pixels of shape (N, C, H, W), dtype uint8.
        masks: Class indices of shape (N, H, W), dtype uint8, each less than len(class_names) or ignore_index.
        class_names: One name per class.
        name: What the data is called in logs and reports.
        ignore_index: Mask value of pixels that do not count.
        palette: A colour per class, to draw masks with; empty for colours of our own.

    Raises:
        TypeError: If images or masks are not uint8.
        ValueError: If the shapes do not fit together, there is nothing, or a class index is out of range.

    Example:
        >>> pixels, masks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 8, 8, dtype=torch.uint8)
        >>> data = SegmentationDataset(pixels, masks, ("sea", "land"), "toy")
        >>> len(data), data.class_counts()
        (2, [0, 128])
    """

    images: Tensor
    masks: Tensor
    class_names: tuple[str, ...]
    name: str
    ignore_index: int = IGNORE
    palette: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        for what, tensor in (("images", self.images), ("masks", self.masks)):
            if tensor.dtype != torch.uint8:
                raise TypeError(f"{what} must be uint8, got {tensor.dtype}")
        shape = self.images.shape
        if self.images.dim() != 4 or self.masks.shape != (shape[0], *shape[2:]):
            raise ValueError(
                f"{self.name}: images of shape {tuple(shape)} need masks of shape (N, H, W), got "
                f"{tuple(self.masks.shape)}"
            )
        if self.images.numel() == 0:
            raise ValueError(f"{self.name}: the data set is empty, shape {tuple(shape)}")
        bad = (self.masks >= len(self.class_names)) & (self.masks != self.ignore_index)
        if bool(bad.any()):
            index, row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{self.name}: class {int(self.masks[index, row, column])} at row {row}, column {column} of mask "
                f"{index} is outside [0, {len(self.class_names)}), and not {self.ignore_index}, which is left out"
            )

    @property
    def targets(self) -> Tensor:
        """The masks."""
        return self.masks

    def statistics(self) -> Normalisation:
        """Mean and standard deviation of every channel."""
        return Normalisation(*channel_statistics(self.images))

    def draw(self, generator: torch.Generator) -> list[int]:
        """A seed per image."""
        return torch.randint(0, 2**62, (len(self),), generator=generator).tolist()

    def batch(
        self,
        chosen: Tensor | slice,
        normalisation: Normalisation,
        memory_format: torch.memory_format,
        randoms: Any = None,
        places: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images of shape (N, C, H, W), float32, and masks of shape (N, H, W), int64, changed alike if augmented."""
        images, masks = self.images[chosen], self.masks[chosen]
        if randoms is not None:
            both = [
                augment_pair(image, mask, seed)
                for image, mask, seed in zip(images, masks, randoms[places], strict=True)
            ]
            images, masks = torch.stack([image for image, _ in both]), torch.stack([mask for _, mask in both])
        return normalisation(images).contiguous(memory_format=memory_format), masks.to(torch.int64)

    def digest(self) -> str:
        """A fingerprint of images and masks."""
        return digest_of(self.images, self.masks)

    def describe(self) -> dict[str, Any]:
        """Channels, size, what is left out, and colours."""
        return {
            "in_channels": self.images.shape[1],
            "image_size": tuple(self.images.shape[2:]),
            "extra": {"ignore_index": self.ignore_index, "palette": [list(colour) for colour in self.palette]},
        }


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Read class names, one a line, each with or without a colour behind it: ``road 128 64 128``.

    Args:
        path: The file.

    Returns:
        The names, and their colours or none.

    Raises:
        ValueError: If the file is empty, a colour is no colour, or only some lines have one.
    """
    names, colours = [], []
    for number, line in enumerate(read_file(path).splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) >= 4 and all(word.isdecimal() for word in words[-3:]):
            colour = tuple(map(int, words[-3:]))
            if max(colour) > 255:
                raise ValueError(f"{path}, line {number}: a colour has values from 0 to 255, got {colour}")
            colours.append(colour)
            words = words[:-3]
        names.append(" ".join(words))
    if not names:
        raise ValueError(f"{path} is empty: it needs one class per line")
    if colours and len(colours) != len(names):
        raise ValueError(f"{path}: {len(colours)} of {len(names)} classes have a colour; all must, or none")
    return tuple(names), tuple(colours)


def load_mask_folder(
    data_dir: str | os.PathLike[str],
    split: str,
    *,
    image_size: int | Sequence[int] | None = None,
    in_channels: int = 3,
    ignore_index: int = IGNORE,
    on_bad_file: str = "stop",
    on_progress: Callable[[int, int], None] | None = None,
) -> SegmentationDataset:
    """Load one split of a folder of images and masks.

    Beside each other lie the folders ``train``, ``val`` and ``test`` (the last two may be one), each with sub-folders
    ``images`` and ``masks``; or ``train`` and ``trainannot`` and so on, without sub-folders. A mask has its image's
    name up to the suffix. It is a file of one channel (or of a palette) that holds class indices; or of colours, which
    ``classes.txt`` gives. ``classes.txt`` names the classes, one a line; without it they are numbered up to the highest
    of the training masks.

    Args:
        data_dir: The folder.
        split: "train", "val" or "test"; either of the last two stands in for the other.
        image_size: Height and width in pixels to bring images and masks to, which are scaled so that they cover it and
            cropped at the centre; None where all are of one size already.
        in_channels: 1 converts to grey, 3 to colour.
        ignore_index: Mask value of pixels that do not count.
        on_bad_file: "stop", or "skip" to leave unreadable images out, with a warning that names the first.
        on_progress: Called with the images read so far and their total.

    Returns:
        The data set.

    Raises:
        ImportError: If Pillow is not installed.
        FileNotFoundError: If a folder or a mask is missing.
        ValueError: If an option is out of range, there is no image, a file is unreadable, a mask has another size than
            its image, or a mask has a class or a colour that is not known; the message names the file.
    """
    if split not in _SPLITS:
        raise unknown_name("split", split, tuple(_SPLITS))
    check_channels(in_channels)
    size = None if image_size is None else pair(image_size)
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    names: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    if (root / CLASSES_FILE).is_file():
        names, colours = read_classes(root / CLASSES_FILE)
    pairs = _pairs(root, split)

    def read(path: Path) -> Tensor:
        return _read_pair(path, pairs[path], size, in_channels, colours, len(names) or IGNORE, ignore_index)

    both, _, faults = read_all(list(pairs), read, on_bad_file, on_progress)
    if faults:
        warnings.warn(f"{len(faults)} of {len(pairs)} images were left out: {faults[0]}", stacklevel=2)
    shapes = {tuple(entry.shape[1:]) for entry in both}
    if len(shapes) > 1:
        raise ValueError(f"images in {root} have several sizes, {sorted(shapes)[:3]}: give image_size")
    stacked = torch.stack(both)
    images, masks = stacked[:, :-1].contiguous(), stacked[:, -1].contiguous()
    if not names:
        highest = _highest(root, masks, split, ignore_index)
        if highest < 1:
            raise ValueError(
                f"the masks in {root} have class 0 alone, beside {ignore_index}, which is left out; if that is a "
                f"class, give another ignore_index, or {CLASSES_FILE} with lines such as: object 255 255 255"
            )
        names = tuple(map(str, range(highest + 1)))
    return SegmentationDataset(images, masks, names, f"{root.name} {split}", ignore_index, colours)


def _pairs(root: Path, split: str) -> dict[Path, Path]:
    """The mask of every image."""
    for name in _SPLITS[split]:
        for images, masks in ((root / name / "images", root / name / "masks"), (root / name, root / f"{name}annot")):
            if images.is_dir() and masks.is_dir():
                files = files_in(images)
                if not files:
                    raise ValueError(f"{images} has no images")
                found = {path.stem: path for path in files_in(masks)}
                missing = [path for path in files if path.stem not in found]
                if missing:
                    raise FileNotFoundError(
                        f"{len(missing)} of {len(files)} images have no mask: {missing[0]} needs {masks}/"
                        f"{missing[0].stem}.png"
                    )
                return {path: found[path.stem] for path in files}
    raise FileNotFoundError(
        f"{root} has no {' or '.join(_SPLITS[split])} with sub-folders images and masks, nor {_SPLITS[split][0]} "
        f"beside {_SPLITS[split][0]}annot"
    )


def _read_pair(
    path: Path,
    mask_path: Path,
    size: tuple[int, int] | None,
    in_channels: int,
    colours: tuple[Colour, ...],
    classes: int,
    ignore_index: int,
) -> Tensor:
    """Image and mask in one tensor, (C + 1, H, W)."""
    PIL = pillow()
    image, mask = open_upright(path).convert(MODES[in_channels]), open_upright(mask_path)
    if image.size != mask.size:
        raise ValueError(
            f"{mask_path} is {mask.size[1]} x {mask.size[0]} pixels (height x width), its image {path} "
            f"{image.size[1]} x {image.size[0]}"
        )
    indices = _indices(mask, mask_path, colours, ignore_index)
    wrong = (indices >= classes) & (indices != ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"{mask_path} has the class {int(indices[wrong][0])}; known are 0 to {classes - 1}, and "
            f"ignore_index={ignore_index}, which is left out"
        )
    if size is not None:
        wide = (size[1], size[0])
        image = PIL.ImageOps.fit(image, wide, method=PIL.Image.Resampling.BILINEAR)
        small = PIL.Image.fromarray(indices.numpy())
        indices = to_tensor(PIL.ImageOps.fit(small, wide, method=PIL.Image.Resampling.NEAREST))[0]
    return torch.cat([to_tensor(image), indices[None]])


def _indices(mask: Any, path: Path, colours: tuple[Colour, ...], ignore_index: int) -> Tensor:
    """The class of every pixel, (H, W), uint8."""
    if mask.mode == "1":
        return to_tensor(mask.convert("L"))[0] // 255
    if mask.mode in ("L", "P") and not (colours and _has_colours(mask, colours)):
        return to_tensor(mask)[0]
    if not colours:
        raise ValueError(
            f"{path} holds colours (mode {mask.mode}); {CLASSES_FILE} must say which class each is: name red green blue"
        )
    pixels = to_tensor(mask.convert("RGB")).to(torch.int64)
    codes = (pixels[0] << 16) | (pixels[1] << 8) | pixels[2]
    indices = torch.full(codes.shape, -1)
    for index, (red, green, blue) in enumerate(colours):
        indices[codes == (red << 16) | (green << 8) | blue] = index
    if bool((indices < 0).any()):
        row, column = (indices < 0).nonzero()[0].tolist()
        unknown = tuple(pixels[:, row, column].tolist())
        # Black and white are customary for what is not labelled.
        if {tuple(p) for p in pixels[:, indices < 0].T.unique(dim=0).tolist()} <= {(0, 0, 0), (255, 255, 255)}:
            indices[indices < 0] = ignore_index
        else:
            raise ValueError(
                f"{path} has the colour {unknown} at row {row}, column {column}, which {CLASSES_FILE} does not have"
            )
    return indices.to(torch.uint8)


def _has_colours(mask: Any, colours: tuple[Colour, ...]) -> bool:
    """Whether the colours of a mask of grey or with a palette, rather than its numbers, are the classes'."""
    used = {colour for _, colour in mask.convert("RGB").getcolors(1 << 24)}
    return bool(used & set(colours)) and used <= {*colours, (0, 0, 0), (255, 255, 255)}


def _highest(root: Path, masks: Tensor, split: str, ignore_index: int) -> int:
    """The highest class of the training masks; -1 if nothing in them counts."""
    if split != "train":
        entries = [_indices(open_upright(path), path, (), ignore_index) for path in _pairs(root, "train").values()]
        masks = torch.cat([entry.flatten() for entry in entries])
    counted = masks[masks != ignore_index]
    return int(counted.max()) if len(counted) else -1
