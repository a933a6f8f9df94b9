"""A task and networks small enough to train in a test."""

from __future__ import annotations

import torch
from torch import nn

from dwsep import networks
from dwsep.training.config import TrainConfig
from dwsep.training.data import ImageDataset

IMAGE_SIZE = 8


def make_data(count: int, seed: int = 0, name: str = "toy") -> ImageDataset:
    """Images of three classes, told apart by which third is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 1, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, 3 * label : 3 * label + 2] += 100
    return ImageDataset(images, labels, ("top", "middle", "bottom"), name)


def make_model(seed: int = 0) -> nn.Module:
    """Every kind of state that a checkpoint must keep: weights, running statistics, and a use of the generator."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6 * IMAGE_SIZE**2, 3),
    )


def make_separable(seed: int = 0) -> nn.Module:
    """The real network at its smallest."""
    torch.manual_seed(seed)
    return networks.create("mobilenet_v1", num_classes=3, in_channels=1, width_multiplier=0.125, stem="small")


def make_config(**changes) -> TrainConfig:
    """Four short epochs."""
    values = {
        "epochs": 4,
        "batch_size": 16,
        "warmup_epochs": 1.0,
        "augment": True,
        "seed": 1,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 0.05,
    }
    return TrainConfig(**{**values, **changes})
