"""Seeded batches from images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.training.data.dataset import ImageDataset

# Two pixels suit images of about 28 pixels, where one pixel is 4 % of the width.
CROP_PADDING = 2


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation, on the scale 0 to 1, that images are normalised with.

    Args:
        mean: One value per channel.
        std: One positive value per channel.

    Raises:
        ValueError: If the lengths differ or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have one value per channel, got {self.mean} and {self.std}")
        if any(not value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """Turn uint8 images of shape (N, C, H, W) into normalised float32 ones."""
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images have {images.shape[1]} channels, the mean has {len(self.mean)}")
        shape = (1, -1, 1, 1)
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device).view(shape)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=images.device)
        return torch.addcmul(shift.view(shape), images.to(torch.float32), scale)


def pad_crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int = CROP_PADDING) -> Tensor:
    """Pad images with zeros, crop each at its own offset to the old size, and mirror some left to right.

    Args:
        images: Shape (N, C, H, W), any dtype.
        offsets: Row and column of each crop's corner in the padded image, shape (N, 2), int64, in [0, 2 * padding].
        flips: Which images to mirror, shape (N,), bool.
        padding: Pixels added on every side.

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> pad_crop_flip(image, torch.tensor([[2, 2]]), torch.tensor([True])).tolist()
        [[[[1, 0], [3, 2]]]]
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    rows = torch.arange(height) + offsets[:, :1]
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + offsets[:, 1:]
    picked = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


class BatchLoader:
    """Batches of normalised images whose order and augmentation depend on the seed and the epoch alone.

    Every random number of an epoch is drawn before its first batch, so that an interrupted epoch can go on from any
    batch with the very numbers that it would have had.

    Args:
        data: The images.
        batch_size: Images per batch.
        normalisation: Mean and standard deviation.
        seed: Seed of order and augmentation.
        augment: Whether to pad, crop and mirror at random.
        memory_format: Memory format of the batches.

    Raises:
        ValueError: If batch_size is not positive or the data set has fewer images than one batch.
    """

    def __init__(
        self,
        data: ImageDataset,
        batch_size: int,
        normalisation: Normalisation,
        *,
        seed: int,
        augment: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if len(data) < batch_size:
            raise ValueError(f"batch_size is {batch_size} but {data.name} has only {len(data)} images")
        self.data = data
        self.batch_size = batch_size
        self.normalisation = normalisation
        self.seed = seed
        self.augment = augment
        self.memory_format = memory_format

    def __len__(self) -> int:
        """Batches per epoch; images that do not fill a last batch are left out, others each epoch."""
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through one epoch.

        Args:
            epoch: Number of the epoch.
            start: First batch.

        Yields:
            Images of shape (batch_size, C, H, W), float32, and labels of shape (batch_size,), int64.
        """
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        count = len(self.data)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * CROP_PADDING + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        for batch in range(start, len(self)):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            chosen = order[span]
            images = self.data.images[chosen]
            if self.augment:
                images = pad_crop_flip(images, offsets[span], flips[span])
            yield self.normalisation(images).contiguous(memory_format=self.memory_format), self.data.labels[chosen]


def sequential_batches(
    data: ImageDataset,
    batch_size: int,
    normalisation: Normalisation,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a data set once, in order and in full; the last batch may be smaller.

    Args:
        data: The images.
        batch_size: Images per batch.
        normalisation: Mean and standard deviation.
        memory_format: Memory format of the batches.

    Yields:
        Images of shape (N, C, H, W), float32, and labels of shape (N,), int64.
    """
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        yield normalisation(images).contiguous(memory_format=memory_format), labels


def _mix(seed: int, epoch: int) -> int:
    """Derive one 63-bit seed from two numbers, so that neighbouring pairs share nothing (SplitMix64's finaliser)."""
    value = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
