"""Published networks built from dwsep's blocks, and where their weights are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from torch import Tensor, nn

import dwsep

# (expansion, out_channels, repeats, stride) of MobileNetV2's stages: Sandler et al., arXiv:1801.04381, table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def data_of(package: str, *path: str) -> Path:
    """A file inside an installed package, which is not imported; a skip where the package is absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the weights are in the package {package}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*path)


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """A dense convolution, batch norm and ReLU6."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6())


class MobileNetV2(nn.Module):
    """MobileNetV2 with torchvision's names above the blocks."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_norm(3, 32, 3, 2, 1)]
        channels = 32
        for expansion, out, repeats, stride in _STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                features.append(dwsep.nn.InvertedResidual(channels, out, stride=step, expansion=expansion))
                channels = out
        features.append(conv_norm(channels, 1280, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MiniXception(nn.Module):
    """The emotion classifier of Arriaga et al., arXiv:1710.07557, figure 2."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.blocks = nn.Sequential(*(
            dwsep.nn.XceptionBlock(low, high, stride=2, start_with_activation=False, padding="same_tf")
            for low, high in ((8, 16), (16, 32), (32, 64), (64, 128))
        ))  # fmt: skip
        self.head = nn.Conv2d(128, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x))).mean((2, 3)).softmax(-1)

    def keras_names(self) -> dict[str, str]:
        """The layers' names in the published file."""
        names = {"stem.0": "conv2d_1", "stem.1": "batch_normalization_1", "stem.3": "conv2d_2",
                 "stem.4": "batch_normalization_2", "head": "conv2d_7"}  # fmt: skip
        for index in range(4):
            block, norm = f"blocks.{index}", 3 * index + 3
            names[f"{block}.shortcut"] = f"conv2d_{index + 3}"
            names[f"{block}.shortcut_norm"] = f"batch_normalization_{norm}"
            for layer in range(2):
                names[f"{block}.layers.{layer}"] = f"separable_conv2d_{2 * index + layer + 1}"
                names[f"{block}.layers.{layer}.norm"] = f"batch_normalization_{norm + layer + 1}"
        return names
