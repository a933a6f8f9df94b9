"""Labelled images held in memory as one uint8 tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dwsep.errors import unknown_name
from dwsep.training.data.augmentation import augment_image
from dwsep.training.data.batches import CROP_PADDING, pad_crop_flip
from dwsep.training.data.examples import Examples, Normalisation, digest_of

AUGMENTATIONS = ("shift", "crop")


@dataclass(frozen=True)
class ImageDataset(Examples):
    """Labelled images of one size, held in memory.

    Args:
        images: Pixels of shape (N, C, H, W), dtype uint8.
        labels: Class indices of shape (N,), dtype int64, each in [0, len(class_names)).
        class_names: One name per class.
        name: What the data is called in logs and reports.
        augmentation: How images are augmented: "shift" moves each by up to two pixels and mirrors some; "crop" takes a
            part of 40 to 100 % of each, mirrors some, and changes colours (:func:`augment_image`).

    Raises:
        TypeError: If images is not uint8 or labels is not int64.
        ValueError: If the shapes do not fit together, the data set is empty, a label is out of range, or augmentation
            is unknown.

    Example:
        >>> import torch
        >>> pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        >>> data = ImageDataset(pixels, torch.tensor([0, 1, 0, 1]), ("cat", "dog"), "toy")
        >>> len(data), data.num_classes, data.in_channels, data.image_size
        (4, 2, 1, (8, 8))
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    augmentation: str = "shift"

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise unknown_name("augmentation", self.augmentation, AUGMENTATIONS)
        if self.images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {self.images.dtype}")
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {self.labels.dtype}")
        if self.images.dim() != 4:
            raise ValueError(f"images must have shape (N, C, H, W), got {tuple(self.images.shape)}")
        if self.labels.dim() != 1 or len(self.labels) != len(self.images):
            raise ValueError(
                f"{self.name}: {len(self.images)} images need labels of shape ({len(self.images)},), "
                f"got {tuple(self.labels.shape)}"
            )
        if self.images.numel() == 0:
            raise ValueError(f"{self.name}: the data set is empty, shape {tuple(self.images.shape)}")
        bad = (self.labels < 0) | (self.labels >= len(self.class_names))
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            raise ValueError(
                f"{self.name}: label {int(self.labels[index])} at index {index} is outside "
                f"[0, {len(self.class_names)}), the range for {len(self.class_names)} classes"
            )

    @property
    def targets(self) -> Tensor:
        """The labels."""
        return self.labels

    @property
    def in_channels(self) -> int:
        """Number of image channels: 1 for grey, 3 for colour."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def statistics(self) -> Normalisation:
        """Mean and standard deviation of every channel."""
        return Normalisation(*channel_statistics(self.images))

    def draw(self, generator: torch.Generator) -> Any:
        """Offsets, (N, 2), and whether to mirror, (N,); for crops, a seed per image."""
        if self.augmentation == "crop":
            return torch.randint(0, 2**62, (len(self),), generator=generator).tolist()
        offsets = torch.randint(0, 2 * CROP_PADDING + 1, (len(self), 2), generator=generator)
        return offsets, torch.rand(len(self), generator=generator) < 0.5

    def batch(
        self,
        chosen: Tensor | slice,
        normalisation: Normalisation,
        memory_format: torch.memory_format,
        randoms: Any = None,
        places: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images of shape (N, C, H, W), float32, changed at random if augmented; labels (N,)."""
        images = self.images[chosen]
        if randoms is not None and self.augmentation == "crop":
            seeds = randoms[places]
            images = torch.stack([augment_image(image, seed) for image, seed in zip(images, seeds, strict=True)])
        elif randoms is not None:
            offsets, flips = randoms
            images = pad_crop_flip(images, offsets[places], flips[places])
        return normalisation(images).contiguous(memory_format=memory_format), self.labels[chosen]

    def digest(self) -> str:
        """A fingerprint of images and labels."""
        return digest_of(self.images, self.labels)

    def describe(self) -> dict[str, Any]:
        """Channels and size."""
        return {"in_channels": self.in_channels, "image_size": self.image_size}


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation of each channel on the scale 0 to 1.

    The sums are integer sums, so the result is the same for any number of threads.

    Args:
        images: Pixels of shape (N, C, H, W), dtype uint8.

    Returns:
        Two tuples of C floats, the mean and the (population) standard deviation. A constant channel gets
        standard deviation 1, so that normalising by it stays finite.

    Raises:
        TypeError: If images is not uint8.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    means: list[float] = []
    deviations: list[float] = []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256)
        values = torch.arange(256)
        total = int(counts.sum())
        mean = int((counts * values).sum()) / total
        variance = int((counts * values * values).sum()) / total - mean * mean
        means.append(mean / 255)
        deviations.append(max(variance, 0.0) ** 0.5 / 255 if variance > 1e-9 else 1.0)
    return tuple(means), tuple(deviations)
