"""What several networks share: checks of their options, channel arithmetic, convolution with norm and activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from dwsep.errors import ArgumentError, unknown_name

STEMS = ("imagenet", "small")


def check_counts(**counts: object) -> None:
    """Raise a ValueError that names the first argument which is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} must be a positive integer, got {value!r}")


def check_dropout(dropout: float) -> None:
    """Raise a ValueError unless a probability of dropping is in [0, 1)."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ArgumentError(f"dropout must be in [0, 1), got {dropout!r}")


def check_switches(**switches: object) -> None:
    """Raise a ValueError that names the first argument which is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name} must be True or False, got {value!r}")


def check_stem(stem: str) -> None:
    """Raise a ValueError unless the name of a stem is known."""
    if stem not in STEMS:
        raise unknown_name("stem", stem, STEMS)


def check_classifier(num_classes: int, in_channels: int, stem: str, dropout: float, **switches: bool) -> None:
    """Raise a ValueError unless the options that every classifier of images has are in range."""
    check_counts(num_classes=num_classes, in_channels=in_channels)
    check_dropout(dropout)
    check_stem(stem)
    check_switches(**switches)


def check_dilations(dilations: Sequence[int]) -> tuple[int, ...]:
    """The dilations of a stack as a tuple, or an error: at least one, each a positive integer."""
    if isinstance(dilations, str) or not isinstance(dilations, Sequence) or not dilations:
        raise ArgumentError(f"dilations must be positive integers, at least one, got {dilations!r}")
    for value in dilations:
        check_counts(dilations=value)
    return tuple(dilations)


def check_width(width_multiplier: float) -> None:
    """Raise a ValueError unless a width multiplier is a positive finite number."""
    if not (math.isfinite(width_multiplier) and width_multiplier > 0):
        raise ArgumentError(f"width_multiplier must be a positive number, got {width_multiplier!r}")


def divisible_channels(channels: float, width_multiplier: float = 1.0) -> int:
    """Scale a channel count and round it to a multiple of 8, at least 8 and never by more than a tenth down.

    MobileNetV2 and V3 round so (torchvision and timm, too); MobileNetV1 goes by
    :func:`dwsep.networks.mobilenet_v1.scale_channels`, without the last clause.

    Args:
        channels: Channels at width 1.
        width_multiplier: Positive factor.

    Returns:
        The scaled channel count.

    Raises:
        ValueError: If width_multiplier is not a positive finite number.

    Example:
        >>> divisible_channels(32), divisible_channels(24, 0.75), divisible_channels(24, 0.5), divisible_channels(4)
        (32, 24, 16, 8)
    """
    check_width(width_multiplier)
    wanted = channels * width_multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class ConvNormActivation(nn.Sequential):
    """A dense convolution without bias, a batch norm and an activation, at the places 0, 1 and 2.

    Takes (N, in_channels, H, W) and gives (N, out_channels, OH, OW); in_channels * out_channels * taps macs a pixel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps per axis, odd, or a pair of them.
        stride: Step of the window.
        dilation: Distance of neighbouring taps, one number or one per axis.
        padding: None keeps ceil(size / stride).
        norm: Called with the channels.
        activation: Its class; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        dilation: int | tuple[int, int] = 1,
        padding: int | None = None,
        *,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        dh, dw = (dilation, dilation) if isinstance(dilation, int) else dilation
        same = (dh * (kh - 1) // 2, dw * (kw - 1) // 2)
        pads = same if padding is None else padding
        conv = nn.Conv2d(in_channels, out_channels, (kh, kw), stride, pads, (dh, dw), bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        parts = [conv, norm(out_channels)]
        super().__init__(*parts, *([] if activation is None else [activation()]))


def init_classifier_(linear: nn.Linear) -> None:
    """Start a classifier near zero, so that its first logits favour no class."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
