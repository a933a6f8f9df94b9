"""A task and networks small enough to train in a test."""

from __future__ import annotations

import torch
from torch import nn

from dwsep import networks
from dwsep.training.config import Settings, TrainConfig
from dwsep.training.config import make_config as parse_config
from dwsep.training.data import ImageDataset, SegmentationDataset, SeriesDataset, TextDataset, Vocabulary

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


def make_masks(count: int, seed: int = 0) -> SegmentationDataset:
    """Images whose bright pixels are one class; some are left out."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 2, (count, 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = (masks * 100)[:, None] + torch.randint(0, 60, (count, 1, 32, 32), generator=generator)
    masks[:, :2] = 255
    return SegmentationDataset(images.to(torch.uint8), masks.to(torch.uint8), ("dark", "bright"), "toy masks")


def make_texts(count: int, seed: int = 0) -> TextDataset:
    """Texts of two classes, told apart by one word."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    tokens = [torch.randint(4, 20, (length,), generator=generator) for length in lengths]
    for text, label in zip(tokens, labels.tolist(), strict=True):
        text[len(text) // 2] = 2 + label
    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(18)))
    return TextDataset(tuple(tokens), labels, ("no", "yes"), vocabulary, "toy texts")


def make_series(count: int, seed: int = 0) -> SeriesDataset:
    """Series of two classes, told apart by the sign of a bump; of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    values = 0.3 * torch.randn(count, 2, 24, generator=generator)
    values[:, 0, 8:12] += (2 * labels - 1)[:, None].float()
    for row, length in zip(values, torch.randint(14, 25, (count,), generator=generator).tolist(), strict=True):
        row[:, length:] = float("nan")
    return SeriesDataset(values, labels, ("down", "up"), "toy series")


TOYS = {"segment": make_masks, "text": make_texts, "series": make_series}
TOY_OPTIONS = {
    "segment": {"width_multiplier": 0.25, "decoder_channels": 32},
    "text": {"width_multiplier": 0.125},
    "series": {"width_multiplier": 0.125, "dilations": [1, 2]},
}


def make_task_config(task: str, **changes) -> Settings:
    """A few short epochs of a task other than the classification of images."""
    values = {"task": task, "data": "not read", "epochs": 3, "batch_size": 8, "warmup_epochs": 0.5, "seed": 1}
    values |= {"network_options": TOY_OPTIONS[task], "augment": True}
    return parse_config({**values, **changes})


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
