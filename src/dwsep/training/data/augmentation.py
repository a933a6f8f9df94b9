"""Random changes of images, and of the masks that belong to them, by torchvision's transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def augment_pair(image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Crop, scale and mirror an image and its mask alike, and change the image's brightness and contrast.

    Args:
        image: Shape (C, H, W), uint8.
        mask: Shape (H, W), uint8.
        seed: Decides how.

    Returns:
        Both, in their shapes.

    Raises:
        ImportError: If torchvision is not installed.
    """
    tv_tensors, v2 = _torchvision()
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(list(mask.shape), scale=(0.4, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2),
        ]
    )
    image, mask = _seeded(transform, seed, tv_tensors.Image(image), tv_tensors.Mask(mask))
    return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def augment_image(image: Tensor, seed: int) -> Tensor:
    """Crop, scale and mirror an image, change brightness, contrast and saturation, and blacken a part of it.

    Args:
        image: Shape (C, H, W), uint8.
        seed: Decides how.

    Returns:
        The image, in its shape.

    Raises:
        ImportError: If torchvision is not installed.

    Source: Szegedy et al., "Going deeper with convolutions", arXiv 1409.4842, section 6, for the crops; Zhong et al.,
    "Random erasing data augmentation", arXiv 1708.04896.
    """
    tv_tensors, v2 = _torchvision()
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(list(image.shape[1:]), scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.RandomErasing(0.25),
        ]
    )
    return _seeded(transform, seed, tv_tensors.Image(image)).as_subclass(Tensor)


def _torchvision() -> tuple[Any, Any]:
    try:
        from torchvision import tv_tensors
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(
            'this augmentation needs torchvision; install it with: pip install "dwsep[vision]", or train with '
            "--no-augment"
        ) from error
    return tv_tensors, v2


def _seeded(transform: Any, seed: int, *inputs: Tensor) -> Any:
    """What a transform makes of its inputs with torch's generator seeded, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(*inputs)
