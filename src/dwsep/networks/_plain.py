"""MobileNetV1 in nothing but torch.nn: what a user of stock PyTorch writes, to compare with.

Its state_dict keys are those of :func:`dwsep.networks.mobilenet_v1`, so weights load strictly both ways.
"""

from __future__ import annotations

from torch import nn

from dwsep.networks.mobilenet_v1 import MobileNetV1, ResidualSequential


class PlainSeparableBlock(ResidualSequential):
    """Depthwise 3x3, norm, ReLU, pointwise, norm, ReLU from torch.nn, initialised as our layer is.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        residual: Whether the input is added to the result.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__(residual)
        self.add_module("depthwise", nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False))
        self.add_module("inner_norm", nn.BatchNorm2d(in_channels))
        self.add_module("inner_activation", nn.ReLU())
        self.add_module("pointwise", nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("activation", nn.ReLU())


def mobilenet_v1_plain(
    num_classes: int,
    *,
    in_channels: int = 3,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.0,
    residual: bool = False,
) -> MobileNetV1:
    """Build MobileNetV1 from torch.nn modules alone; the options are those of :class:`MobileNetV1`."""
    return MobileNetV1(
        num_classes,
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        stem=stem,
        dropout=dropout,
        residual=residual,
        make_block=PlainSeparableBlock,
    )
