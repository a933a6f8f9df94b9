"""Networks and data for the tests of conversion."""

from __future__ import annotations

import torch
from torch import nn


def images(count: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    """Inputs such as layers are given: neighbouring pixels and channels have much in common, and none is negative."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, max(1, channels // 3), generator=torch.Generator().manual_seed(99))
    smooth = torch.randn(count, mix.shape[1], size + 2, size + 2, generator=draw)
    smooth = torch.nn.functional.avg_pool2d(smooth, 3, 1)
    x = torch.einsum("cd,ndhw->nchw", mix, smooth) + 0.1 * torch.randn(count, channels, size, size, generator=draw)
    return x.relu()


class Net(nn.Module):
    """A small residual network with most of what surgery has to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.dilated = nn.Conv2d(24, 24, 3, dilation=2, padding="same", padding_mode="reflect")
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 5)."""
        x = self.stem(x)
        x = self.body(x) + x
        x = self.body(x)  # the same block again
        x = self.down(x)
        x = (self.dilated(x) + self.grouped(x)).relu()
        return self.head(x.mean((2, 3)))


def trained_net(seed: int = 0) -> tuple[Net, list[torch.Tensor]]:
    """A network whose norms have seen data, in evaluation, and batches of that data."""
    torch.manual_seed(seed)
    net = Net()
    data = [images(8, 3, 14, seed) for seed in range(4)]
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        for _ in range(2):
            for batch in data:
                net(batch)
    return net.eval(), data
