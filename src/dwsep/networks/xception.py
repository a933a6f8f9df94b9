"""Xception, the aligned Xception of DeepLab, and their dense twins.

Source: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017, arXiv 1610.02357, figure 5; Chen
et al., "Encoder-Decoder with Atrous Separable Convolution", 2018, arXiv 1802.02611, figure 4, for the aligned one.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from dwsep.errors import unknown_name
from dwsep.networks import _parts
from dwsep.networks._dense import dense_twin_
from dwsep.networks._parts import ConvNormActivation, divisible_channels
from dwsep.nn import DepthwiseSeparableConv2d, XceptionBlock

VARIANTS = ("original", "aligned")
_ENTRY = (128, 256, 728)
_EXIT = 1024
_HEADS = {"original": (1536, 2048), "aligned": (1536, 1536, 2048)}


class Features(nn.Sequential):
    """The convolutions of Xception: two dense ones, the blocks, and the separable ones at the end.

    Args:
        in_channels: Image channels.
        width_multiplier: Scales every channel count.
        stem: "imagenet" or "small"; see :class:`Xception`.
        variant: "original" or "aligned".
        middle_blocks: Blocks of the middle flow.
        output_stride: 8, 16 or 32: where the stride would grow beyond it, what follows is dilated instead. Needs the
            aligned variant if less than 32.

    Attributes:
        out_channels: Channels of the result.
        low_level: Index of the last module at a quarter of the image's size.
        low_level_channels: Channels of that module's output.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        stem: str = "imagenet",
        variant: str = "original",
        middle_blocks: int = 8,
        output_stride: int = 32,
    ) -> None:
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        small, aligned = stem == "small", variant == "aligned"
        if output_stride < 32 and not aligned and not small:
            raise ValueError(f"output_stride {output_stride} needs variant='aligned', got {variant!r}")
        scale = functools.partial(divisible_channels, width_multiplier=width_multiplier)
        norm: Any = functools.partial(nn.BatchNorm2d, eps=1e-3) if aligned else nn.BatchNorm2d
        # The published original pads nothing in its first two convolutions, which small images cannot afford.
        padding = None if aligned or small else 0
        channels = scale(64)
        modules: list[nn.Module] = [
            ConvNormActivation(in_channels, scale(32), 3, 1 if small else 2, padding=padding, norm=norm),
            ConvNormActivation(scale(32), channels, 3, padding=padding, norm=norm),
        ]
        total, dilation = (1 if small else 2), 1
        low_level = low_level_channels = 0
        plan = [(width, 2) for width in _ENTRY] + [(_ENTRY[-1], 1)] * middle_blocks + [(_EXIT, 1 if small else 2)]
        for index, (width, stride) in enumerate(plan):
            out, block_dilation = scale(width), dilation
            if stride == 2 and total == output_stride:
                stride, dilation = 1, dilation * 2
            total *= stride
            exits = index == len(plan) - 1
            options: dict[str, Any] = {"stride": stride, "norm": norm}
            if aligned:
                options |= {"repeats": 3, "dilation": block_dilation, "downsample": "stride", "inner_norm": norm}
                options |= {"inner_channels": (channels, out)} if exits else {}
            else:
                middle = 2 < index < len(plan) - 1
                options |= {"repeats": 3 if middle else 2, "grow_first": not exits, "start_with_activation": index > 0}
            modules.append(XceptionBlock(channels, out, **options))
            channels = out
            if total == 4:
                low_level, low_level_channels = len(modules) - 1, channels
        inner: dict[str, Any] = {"inner_norm": norm, "inner_activation": "relu"} if aligned else {}
        for width in _HEADS[variant]:
            out = scale(width)
            modules.append(
                DepthwiseSeparableConv2d(
                    channels, out, dilation=dilation, bias=False, norm=norm, activation="relu", **inner
                )
            )
            channels = out
        super().__init__(*modules)
        self.out_channels = channels
        self.low_level, self.low_level_channels = low_level, low_level_channels


class Xception(nn.Module):
    """Xception image classifier.

    ``"original"`` is the published network, as in timm's legacy_xception; ``"aligned"`` is DeepLab's, whose blocks
    have three convolutions with a norm after each factor and stride in place of pooling, as in timm's xception41 (8
    middle blocks) and xception65 (16). The ``"small"`` stem, for images such as 28x28 and 32x32, keeps stride 1 in
    the stem and in the exit flow: 28x28 ends at 4x4; the ``"imagenet"`` one ends at 1/32 of the image.

    Args:
        num_classes: Number of logits.
        in_channels: Image channels.
        width_multiplier: Scales every channel count, rounded to multiples of 8.
        stem: "imagenet" or "small".
        variant: "original" or "aligned".
        middle_blocks: Blocks of the middle flow.
        dropout: Probability of dropping a feature before the classifier.
        dense: Whether every separable convolution is a dense 3x3 one instead.

    Raises:
        ValueError: If an option is out of range or a name is unknown.

    Cost at width 1, image 299x299, 1,000 classes: 22.9 M parameters, 8.4 G macs.

    Source: Chollet 2017, arXiv 1610.02357, figure 5.

    Example:
        >>> import torch
        >>> network = Xception(10, in_channels=1, width_multiplier=0.125, stem="small", middle_blocks=2)
        >>> network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        stem: str = "imagenet",
        variant: str = "original",
        middle_blocks: int = 8,
        dropout: float = 0.0,
        dense: bool = False,
    ) -> None:
        super().__init__()
        _parts.check_classifier(num_classes, in_channels, stem, dropout, dense=dense)
        _parts.check_counts(middle_blocks=middle_blocks)
        self.features = Features(in_channels, width_multiplier, stem, variant, middle_blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.features.out_channels, num_classes)
        _parts.init_classifier_(self.classifier)
        if dense:
            dense_twin_(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images of shape (N, in_channels, H, W), floating point.

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.classifier(self.dropout(self.features(x).mean((2, 3))))
