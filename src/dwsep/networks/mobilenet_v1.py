"""MobileNetV1 and its dense twin.

Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
arXiv 1704.04861, Table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from dwsep.networks import _parts
from dwsep.networks._parts import check_stem
from dwsep.nn import DepthwiseSeparableConv2d

# (out_channels at width 1, stride) of the thirteen blocks.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
_STEM_CHANNELS = 32
# Index of the block whose stride 2 becomes 1 with the small stem.
_SMALL_STEM_UNSTRIDED = 11


class BlockPlan(NamedTuple):
    """Channels and stride of one block."""

    in_channels: int
    out_channels: int
    stride: int

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the shape of the input, so that the two can be added."""
        return self.stride == 1 and self.in_channels == self.out_channels


def scale_channels(channels: int, width_multiplier: float) -> int:
    """Scale a channel count and round it to the nearest multiple of 8, at least 8.

    Args:
        channels: Channels at width 1.
        width_multiplier: Positive factor.

    Returns:
        The scaled channel count.

    Raises:
        ValueError: If width_multiplier is not a positive finite number.

    Example:
        >>> scale_channels(32, 0.75), scale_channels(64, 0.1), scale_channels(512, 0.35)
        (24, 8, 176)
    """
    _parts.check_width(width_multiplier)
    return max(8, int(channels * width_multiplier / 8 + 0.5) * 8)


def plan_blocks(width_multiplier: float = 1.0, stem: str = "imagenet") -> tuple[BlockPlan, ...]:
    """List the thirteen blocks of the network.

    Args:
        width_multiplier: Scales every channel count, rounded to multiples of 8.
        stem: "imagenet" or "small"; see :class:`MobileNetV1`.

    Returns:
        One entry per block.

    Raises:
        ValueError: If width_multiplier is not positive or stem is unknown.
    """
    check_stem(stem)
    plan = []
    in_channels = scale_channels(_STEM_CHANNELS, width_multiplier)
    for index, (channels, stride) in enumerate(_BLOCKS):
        out_channels = scale_channels(channels, width_multiplier)
        if stem == "small" and index == _SMALL_STEM_UNSTRIDED:
            stride = 1
        plan.append(BlockPlan(in_channels, out_channels, stride))
        in_channels = out_channels
    return tuple(plan)


class ResidualSequential(nn.Sequential):
    """Modules in a row, whose result the input may be added to.

    Args:
        residual: Whether it is; needs a result of the input's shape.
    """

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules, and add x where residual is set."""
        out = super().forward(x)
        return out + x if self.residual else out


class ConvNormReLU(ResidualSequential):
    """A dense 3x3 convolution, batch norm and ReLU; submodules conv, norm and activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the convolution.
        residual: Whether the input is added to the result.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__(residual)
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False))
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("activation", nn.ReLU())
        nn.init.kaiming_normal_(self.get_submodule("conv").weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]


def separable_block(in_channels: int, out_channels: int, stride: int, residual: bool) -> nn.Module:
    """Build the block of MobileNetV1: depthwise 3x3, norm, ReLU, pointwise, norm, ReLU, and perhaps the input added."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        3,
        stride,
        bias=False,
        norm="batch",
        activation="relu",
        inner_norm="batch",
        inner_activation="relu",
        residual="input" if residual else None,
    )


class MobileNetV1(nn.Module):
    """MobileNetV1 image classifier, or a network of the same outline with another block.

    The ``"imagenet"`` stem is a 3x3 convolution with stride 2, and blocks 2, 4, 6 and 12 (counted from 1) have stride
    2: the final feature map is 1/32 of the image. The ``"small"`` stem, for images such as 28x28 and 32x32, keeps
    stride 1 in the stem and in block 12; blocks 2, 4 and 6 still have stride 2: 28x28 goes 28, 14, 7, 4.

    Args:
        num_classes: Number of logits.
        in_channels: Image channels.
        width_multiplier: Scales every channel count, rounded to multiples of 8.
        stem: "imagenet" or "small".
        dropout: Probability of dropping a feature before the classifier.
        residual: Whether every block whose output has the shape of its input adds that input to it. Not part of the
            published network; it lets the separable one, of twice as many convolutions, train in few epochs.
        make_block: Called with in_channels, out_channels, stride and residual for each of the thirteen blocks.

    Raises:
        ValueError: If an option is out of range or stem is unknown.

    Source: Howard et al. 2017, arXiv 1704.04861, Table 1.

    Example:
        >>> import torch
        >>> network = MobileNetV1(10, in_channels=1, width_multiplier=0.25, stem="small")
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
        dropout: float = 0.0,
        residual: bool = False,
        make_block: Callable[[int, int, int, bool], nn.Module] = separable_block,
    ) -> None:
        super().__init__()
        _parts.check_classifier(num_classes, in_channels, stem, dropout, residual=residual)
        plan = plan_blocks(width_multiplier, stem)
        self.stem = ConvNormReLU(in_channels, plan[0].in_channels, stride=1 if stem == "small" else 2)
        self.blocks = nn.Sequential(*(make_block(*block, residual and block.keeps_shape) for block in plan))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(plan[-1].out_channels, num_classes)
        _parts.init_classifier_(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images of shape (N, in_channels, H, W), floating point.

        Returns:
            Logits of shape (N, num_classes).
        """
        features = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(self.dropout(features))


def mobilenet_v1(
    num_classes: int,
    *,
    in_channels: int = 3,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.0,
    residual: bool = False,
    dense: bool = False,
) -> MobileNetV1:
    """Build MobileNetV1 from depthwise separable blocks; see :class:`MobileNetV1` for the options.

    ``dense=True`` is :func:`mobilenet_v1_dense`.

    Cost at width 1, image 224x224, 1,000 classes: 4.23 M parameters, 569 M macs.

    Example:
        >>> sum(p.numel() for p in mobilenet_v1(1000).parameters())
        4231976
    """
    _parts.check_switches(dense=dense)
    return MobileNetV1(
        num_classes,
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        stem=stem,
        dropout=dropout,
        residual=residual,
        make_block=ConvNormReLU if dense else separable_block,
    )


def mobilenet_v1_dense(
    num_classes: int,
    *,
    in_channels: int = 3,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.0,
    residual: bool = False,
) -> MobileNetV1:
    """Build MobileNetV1 with a dense 3x3 convolution, norm and ReLU in place of every separable block.

    The options are those of :class:`MobileNetV1`. Dense weights are drawn by He's rule over the fan-out.

    Cost at width 1, image 224x224, 1,000 classes: 29.3 M parameters, 4.87 G macs.
    """
    return MobileNetV1(
        num_classes,
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        stem=stem,
        dropout=dropout,
        residual=residual,
        make_block=ConvNormReLU,
    )
