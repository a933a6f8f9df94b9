"""MobileNetV3 in its two sizes, and their dense twins.

Source: Howard et al., "Searching for MobileNetV3", 2019, arXiv 1905.02244, Tables 1 and 2.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor, nn

from dwsep.errors import unknown_name
from dwsep.networks import _parts
from dwsep.networks._dense import dense_twin_
from dwsep.networks._parts import ConvNormActivation, divisible_channels
from dwsep.nn import InvertedResidual


class _Block(NamedTuple):
    kernel_size: int
    hidden: int
    out: int
    squeeze: bool
    activation: str
    stride: int


def _blocks(*rows: tuple[int, int, int, bool, str, int]) -> tuple[_Block, ...]:
    return tuple(_Block(*row) for row in rows)


# Kernel, hidden channels, out channels, squeeze-and-excite, activation, stride: Table 1.
_LARGE = _blocks(
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2),
    (3, 200, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1),
    (3, 480, 112, True, "hardswish", 1),
    (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2),
    (5, 960, 160, True, "hardswish", 1),
    (5, 960, 160, True, "hardswish", 1),
)
# Table 2.
_SMALL = _blocks(
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hardswish", 2),
    (5, 240, 40, True, "hardswish", 1),
    (5, 240, 40, True, "hardswish", 1),
    (5, 120, 48, True, "hardswish", 1),
    (5, 144, 48, True, "hardswish", 1),
    (5, 288, 96, True, "hardswish", 2),
    (5, 576, 96, True, "hardswish", 1),
    (5, 576, 96, True, "hardswish", 1),
)
_STEM_CHANNELS = 16


class MobileNetV3(nn.Module):
    """MobileNetV3 image classifier, with torchvision's names, whose weights load as they are.

    The ``"imagenet"`` stem has stride 2, and the final feature map is 1/32 of the image. The ``"small"`` stem, for
    images such as 28x28 and 32x32, keeps stride 1 in the stem and in the last strided block: 28x28 ends at 4x4.

    Args:
        num_classes: Number of logits.
        size: "large" or "small", as the paper's two tables.
        in_channels: Image channels.
        width_multiplier: Scales every channel count, rounded to multiples of 8; the widest layer's too, as torchvision
            does (timm keeps that one).
        stem: "imagenet" or "small".
        dropout: Probability of dropping a feature before the classifier.
        norm_eps: What the norms add to the variance: 1e-3 as published and in torchvision; 1e-5 for timm's
            mobilenetv3_large_100.
        dense: Whether expansion and depthwise convolution of every block become one dense convolution.

    Raises:
        ValueError: If an option is out of range or a name is unknown.

    Source: Howard et al. 2019, arXiv 1905.02244, Tables 1 and 2.

    Example:
        >>> import torch
        >>> network = MobileNetV3(10, "small", in_channels=1, width_multiplier=0.5, stem="small")
        >>> network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        size: str,
        *,
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        stem: str = "imagenet",
        dropout: float = 0.2,
        norm_eps: float = 1e-3,
        dense: bool = False,
    ) -> None:
        super().__init__()
        _parts.check_classifier(num_classes, in_channels, stem, dropout, dense=dense)
        tables = {"large": (_LARGE, 1280), "small": (_SMALL, 1024)}
        if size not in tables:
            raise unknown_name("size", size, tuple(tables))
        blocks, wide = tables[size]
        norm = functools.partial(nn.BatchNorm2d, eps=norm_eps, momentum=0.01)
        scale = functools.partial(divisible_channels, width_multiplier=width_multiplier)
        small = stem == "small"
        unstrided = max(index for index, block in enumerate(blocks) if block.stride == 2) if small else None
        channels = scale(_STEM_CHANNELS)
        features: list[nn.Module] = [
            ConvNormActivation(in_channels, channels, 3, 1 if small else 2, norm=norm, activation=nn.Hardswish)
        ]
        for index, block in enumerate(blocks):
            hidden, out = scale(block.hidden), scale(block.out)
            features.append(
                InvertedResidual(
                    channels,
                    out,
                    block.kernel_size,
                    1 if index == unstrided else block.stride,
                    hidden_channels=hidden,
                    squeeze_channels=divisible_channels(hidden // 4) if block.squeeze else None,
                    squeeze_gate="hardsigmoid",
                    norm=norm,
                    activation=block.activation,
                )
            )
            channels = out
        features.append(ConvNormActivation(channels, 6 * channels, 1, norm=norm, activation=nn.Hardswish))
        self.features = nn.Sequential(*features)
        first, last = nn.Linear(6 * channels, scale(wide)), nn.Linear(scale(wide), num_classes)
        for linear in (first, last):
            _parts.init_classifier_(linear)
        self.classifier = nn.Sequential(first, nn.Hardswish(), nn.Dropout(dropout), last)
        if dense:
            dense_twin_(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images of shape (N, in_channels, H, W), floating point.

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v3_large(
    num_classes: int,
    *,
    in_channels: int = 3,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
    dense: bool = False,
) -> MobileNetV3:
    """Build MobileNetV3-Large; see :class:`MobileNetV3` for the options.

    Cost at width 1, image 224x224, 1,000 classes: 5.48 M parameters, 217 M macs.

    Example:
        >>> sum(p.numel() for p in mobilenet_v3_large(1000).parameters())
        5483032
    """
    return MobileNetV3(
        num_classes,
        "large",
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        stem=stem,
        dropout=dropout,
        norm_eps=norm_eps,
        dense=dense,
    )


def mobilenet_v3_small(
    num_classes: int,
    *,
    in_channels: int = 3,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
    dense: bool = False,
) -> MobileNetV3:
    """Build MobileNetV3-Small; see :class:`MobileNetV3` for the options.

    Cost at width 1, image 224x224, 1,000 classes: 2.54 M parameters, 56.5 M macs.

    Example:
        >>> sum(p.numel() for p in mobilenet_v3_small(1000).parameters())
        2542856
    """
    return MobileNetV3(
        num_classes,
        "small",
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        stem=stem,
        dropout=dropout,
        norm_eps=norm_eps,
        dense=dense,
    )
