"""What training asks of a data set, whatever its examples are."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation that inputs are normalised with; of images on the scale 0 to 1.

    Args:
        mean: One value per channel; none for data which is not normalised.
        std: One positive value per channel.

    Raises:
        ValueError: If the lengths differ or a standard deviation is not positive.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

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


class Examples(ABC):
    """Labelled examples in memory."""

    name: str
    class_names: tuple[str, ...]
    # A target of this value counts neither in the loss nor in any metric; the value that torch leaves out by default.
    ignore_index: int = -100
    # What one example is called where many are counted.
    unit: str = "images"

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """Class indices, int64 or uint8: (N,), or (N, H, W) where every pixel has one."""

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each of them occurs."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.targets)

    def statistics(self) -> Normalisation:
        """What inputs of this kind are normalised with."""
        return Normalisation()

    def draw(self, generator: torch.Generator) -> Any:
        """Every random number that augmenting each example once takes."""
        return None

    @abstractmethod
    def batch(
        self,
        chosen: Tensor | slice,
        normalisation: Normalisation,
        memory_format: torch.memory_format,
        randoms: Any = None,
        places: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples, as the network takes them.

        Args:
            chosen: Which examples.
            normalisation: From the training data's :meth:`statistics`.
            memory_format: Of the inputs, where they are images.
            randoms: None, or what :meth:`draw` drew, to augment with.
            places: Where in ``randoms`` the numbers for these examples are.

        Returns:
            Inputs, float32 or int64, and targets, int64.
        """

    @abstractmethod
    def digest(self) -> str:
        """A fingerprint of inputs and targets."""

    def describe(self) -> dict[str, Any]:
        """What a model file says of the data: fields of :class:`dwsep.networks._weights.ModelInfo`."""
        return {}

    def network_options(self) -> dict[str, Any]:
        """Options that a network for this data must have, such as the size of the vocabulary."""
        return {}

    def class_counts(self) -> list[int]:
        """How often each class occurs among the targets."""
        targets = self.targets.flatten().to(torch.int64)
        return torch.bincount(targets[targets != self.ignore_index], minlength=self.num_classes).tolist()


def digest_of(*tensors: Tensor) -> str:
    """The SHA-256 of the first tensor's shape and of all tensors' elements, in hexadecimal digits."""
    content = hashlib.sha256(repr(tuple(tensors[0].shape)).encode())
    for tensor in tensors:
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
