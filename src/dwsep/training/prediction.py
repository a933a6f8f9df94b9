"""Using a trained network: labels and masks from images, labels from texts and series."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.networks._weights import read_model
from dwsep.training.data import Normalisation, SeriesDataset, Vocabulary
from dwsep.training.data.images import MODES, files_in, open_upright, read_each, read_image, to_tensor
from dwsep.training.data.masks import Colour
from dwsep.training.data.series import read_npz, read_ts
from dwsep.training.data.text import PADDING


@dataclass(frozen=True)
class Prediction:
    """What a network says of one input.

    Args:
        source: The input: a path, a text, or a path and a number.
        label: The likeliest class.
        probability: Of that class, 0 to 1.
        probabilities: Of every class.
    """

    source: str
    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """A trained network with all that its inputs need, accelerated.

    Args:
        path: A model file or training checkpoint made by ``dwsep train``.
        accelerate: Whether the network runs accelerated.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not one of ours.

    Attributes:
        info: What the file says of its network.
        task: "classify", "segment", "text" or "series".
    """

    def __init__(self, path: str | os.PathLike[str], *, accelerate: bool = True) -> None:
        _, self.info = read_model(path)
        self.task = self.info.task
        self.model = networks.load_model(path).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerate:
            accelerate_(self.model)
        self.normalisation = Normalisation(self.info.mean, self.info.std)

    def images(self, paths: Sequence[Path], batch_size: int = 32, *, on_bad_file: str = "stop") -> Iterator[Prediction]:
        """Classify image files, brought to the size of the images that the network was trained on.

        Args:
            paths: The files.
            batch_size: Images that go through the network together.
            on_bad_file: "stop" at an image that cannot be read, or "skip" it with a warning.

        Raises:
            ValueError: If the network does something else, or an image cannot be read; the message names it.
        """
        self._check("classify")
        size, channels = self.info.image_size, self.info.in_channels
        each = read_each(paths, lambda path: read_image(path, size, channels), on_bad_file)
        while batch := list(itertools.islice(each, batch_size)):
            pixels = torch.stack([image for _, image in batch])
            yield from self._predictions(self._image_batch(pixels), [str(path) for path, _ in batch])

    def mask(self, path: Path) -> tuple[Tensor, Tensor]:
        """Give every pixel of an image file a class.

        Returns:
            The image, (C, H, W), uint8, and the classes, (H, W), uint8, both of the file's size.

        Raises:
            ValueError: If the network does something else, or the image cannot be read; the message names it.
        """
        self._check("segment")
        image = to_tensor(open_upright(path).convert(MODES[self.info.in_channels]))
        with torch.inference_mode():
            logits = self.model(self._image_batch(image[None]))
        return image, logits[0].argmax(0).to(torch.uint8)

    def texts(self, texts: Sequence[str], batch_size: int = 64) -> Iterator[Prediction]:
        """Classify texts.

        Raises:
            ValueError: If the network does something else.
        """
        self._check("text")
        vocabulary = Vocabulary(tuple(self.info.extra["vocabulary"]))
        for first in range(0, len(texts), batch_size):
            chosen = texts[first : first + batch_size]
            tokens = [vocabulary.encode(text) for text in chosen]
            padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PADDING)
            yield from self._predictions(padded, chosen)

    def series(self, path: Path, batch_size: int = 64) -> Iterator[Prediction]:
        """Classify the series of a .ts or .npz file, whose labels are not looked at.

        Raises:
            ValueError: If the network does something else, or the file is damaged or of other channels.
        """
        self._check("series")
        read = read_ts(path) if path.suffix.lower() == ".ts" else read_npz(path, "test") or read_npz(path, "train")
        assert read is not None
        values = read[0]
        if values.shape[1] != self.info.in_channels:
            raise ValueError(f"{path} has {values.shape[1]} channels, the network takes {self.info.in_channels}")
        data = SeriesDataset(values, torch.zeros(len(values), dtype=torch.int64), self.info.class_names, path.name)
        for first in range(0, len(values), batch_size):
            chosen = slice(first, first + batch_size)
            batch, _ = data.batch(chosen, self.normalisation, torch.contiguous_format)
            yield from self._predictions(batch, [f"{path}:{number}" for number in range(len(values))[chosen]])

    def _check(self, task: str) -> None:
        if self.task != task:
            raise ValueError(f"the network is for the task {self.task!r}, not {task!r}")

    def _image_batch(self, pixels: Tensor) -> Tensor:
        return self.normalisation(pixels).contiguous(memory_format=torch.channels_last)

    def _predictions(self, inputs: Tensor, sources: Sequence[str]) -> Iterator[Prediction]:
        with torch.inference_mode():
            shares = self.model(inputs).float().softmax(1)
        for source, row in zip(sources, shares.tolist(), strict=True):
            named = dict(zip(self.info.class_names, row, strict=True))
            label = max(named, key=named.__getitem__)
            yield Prediction(source, label, named[label], named)

    def palette(self) -> list[Colour]:
        """A colour per class to draw masks with: the data's, or colours far from each other."""
        given = self.info.extra.get("palette") or []
        if given:
            return [(red, green, blue) for red, green, blue in given]
        return [_colour(index) for index in range(self.info.num_classes)]


def image_files(inputs: Sequence[Path]) -> list[Path]:
    """Image files, and those in folders.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a folder has no images.
    """
    found: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            inside = files_in(entry)
            if not inside:
                raise ValueError(f"{entry} has no images")
            found += inside
        elif entry.exists():
            found.append(entry)
        else:
            raise FileNotFoundError(f"image {entry} does not exist")
    return found


def write_mask(path: Path, classes: Tensor, palette: Sequence[Colour]) -> None:
    """Write classes, (H, W), uint8, as a PNG whose values are the classes and whose palette shows them."""
    from PIL import Image

    picture = Image.fromarray(classes.numpy())
    picture.putpalette([value for colour in palette for value in colour])
    picture.save(path)


def write_overlay(path: Path, image: Tensor, classes: Tensor, palette: Sequence[Colour], strength: float = 0.5) -> None:
    """Write an image, (C, H, W), uint8, with the classes' colours laid over it, as a PNG."""
    from PIL import Image

    colours = torch.tensor(palette, dtype=torch.float32)[classes.to(torch.int64)]
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).float()
    mixed = pixels.lerp(colours, strength).round().to(torch.uint8)
    Image.fromarray(mixed.numpy()).save(path)


def _colour(index: int) -> Colour:
    """Colours far apart: the bits of the index, highest first, spread over the three channels (as Pascal VOC's)."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index & 1) << (7 - bit)
        green |= (index >> 1 & 1) << (7 - bit)
        blue |= (index >> 2 & 1) << (7 - bit)
        index >>= 3
    return red, green, blue
