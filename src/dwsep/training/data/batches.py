"""Seeded batches from examples in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.training.data.examples import Examples, Normalisation

# Two pixels suit images of about 28 pixels, where one pixel is 4 % of the width.
CROP_PADDING = 2


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
    """Batches whose order and augmentation depend on the seed and the epoch alone.

    Every random number of an epoch is drawn before its first batch, so that an interrupted epoch can go on from any
    batch with the very numbers that it would have had.

    Args:
        data: The examples.
        batch_size: Examples per batch.
        normalisation: Mean and standard deviation.
        seed: Seed of order and augmentation.
        augment: Whether to change examples at random, as their kind of data does.
        memory_format: Memory format of batches of images.
        rank: Which part of every batch this process takes.
        parts: Number of processes; each takes as many examples of a batch.

    Raises:
        ValueError: If batch_size is not positive or no multiple of parts, or the data set has fewer examples than one
            batch.
    """

    def __init__(
        self,
        data: Examples,
        batch_size: int,
        normalisation: Normalisation,
        *,
        seed: int,
        augment: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
        rank: int = 0,
        parts: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if batch_size % parts:
            raise ValueError(f"batch_size must be a multiple of the {parts} processes, got {batch_size}")
        if len(data) < batch_size:
            raise ValueError(
                f"batch_size must be at most {len(data)}, the {data.unit} of {data.name}, got {batch_size}"
            )
        self.data = data
        self.batch_size = batch_size
        self.normalisation = normalisation
        self.seed = seed
        self.augment = augment
        self.memory_format = memory_format
        self.rank = rank
        self.parts = parts

    def __len__(self) -> int:
        """Batches per epoch; examples that do not fill a last batch are left out, others each epoch."""
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through one epoch.

        Args:
            epoch: Number of the epoch.
            start: First batch.

        Yields:
            Inputs and targets of batch_size / parts examples.
        """
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(len(self.data), generator=generator)
        randoms = self.data.draw(generator)
        share = self.batch_size // self.parts
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            span = slice(first, first + share)
            yield self.data.batch(
                order[span], self.normalisation, self.memory_format, randoms if self.augment else None, span
            )


def sequential_batches(
    data: Examples,
    batch_size: int,
    normalisation: Normalisation,
    memory_format: torch.memory_format = torch.contiguous_format,
    rank: int = 0,
    parts: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a data set once, in order and in full; the last batch may be smaller.

    Args:
        data: The examples.
        batch_size: Examples per batch.
        normalisation: Mean and standard deviation.
        memory_format: Memory format of batches of images.
        rank: With ``parts``, only every parts-th batch from this one.
        parts: See ``rank``.

    Yields:
        Inputs and targets.
    """
    for first in range(rank * batch_size, len(data), parts * batch_size):
        yield data.batch(slice(first, first + batch_size), normalisation, memory_format)


def mix(seed: int, *numbers: int) -> int:
    """Derive one 63-bit seed from several numbers, so that neighbours share nothing (SplitMix64's finaliser)."""
    value = seed
    for number in numbers:
        value = (value * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value = (value ^ (value >> 31)) >> 1
    return value
