"""A small network with a separable block, for what looks at every layer of it."""

from __future__ import annotations

import torch
from torch import nn

import dwsep


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip

    def forward(self, x):
        return torch.relu(x + self.body(x))


def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def names(report):
    return [row.name for row in report.rows]


def larger_network(accelerated: bool) -> tuple[nn.Module, torch.Tensor]:
    start, _, *end = network()
    model = nn.Sequential(start, *(Residual() for _ in range(3)), *end)
    if accelerated:
        dwsep.accelerate_(model)
    return model, torch.randn(4, 3, 160, 160).contiguous(memory_format=torch.channels_last)
