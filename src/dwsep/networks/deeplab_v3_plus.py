"""DeepLabV3+ for semantic segmentation, and its dense twin.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018, arXiv
1802.02611.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.networks import _parts, mobilenet_v2, xception
from dwsep.networks._dense import dense_twin_
from dwsep.networks._parts import ConvNormActivation, divisible_channels
from dwsep.nn import DepthwiseSeparableConv2d, SeparableASPP

ENCODERS = ("mobilenet_v2", "xception")
OUTPUT_STRIDES = (8, 16)
_LOW_LEVEL_CHANNELS = 48
# Of the atrous branches, by output stride: section 4 of the paper.
_DILATIONS = {16: (6, 12, 18), 8: (12, 24, 36)}


class DeepLabV3Plus(nn.Module):
    """Semantic segmentation: a dilated encoder, separable atrous pyramid pooling, and a decoder with a shortcut.

    The features at 1/16 or 1/8 of the image's size pass :class:`dwsep.nn.SeparableASPP` and a separable convolution,
    are brought to 1/4, joined with the encoder's features there, mixed by a separable convolution, and classified
    pixel by pixel; the logits are brought to the image's size. With ``encoder_head=True`` and dilations 12, 24 and 36
    it is segmentation_models_pytorch's DeepLabV3Plus, whose weights load.

    Args:
        num_classes: Classes of a pixel.
        in_channels: Image channels.
        encoder: "mobilenet_v2" or "xception" (the aligned one).
        output_stride: 16, or 8 for twice the resolution at more than twice the cost.
        width_multiplier: Scales every channel count but the shortcut's, rounded to multiples of 8.
        decoder_channels: Of pyramid and decoder at width 1.
        dilations: Of the pyramid's branches; None for 6, 12, 18 at output stride 16 and twice that at 8.
        encoder_head: Whether MobileNetV2's last 1x1 convolution, to 1280 channels, is part of the encoder. The pyramid
            costs four times as much on top of it.
        dropout: Probability of dropping an element of the pyramid's output.
        enlarge: How many times larger than they are the network sees images, bilinearly: 2 for objects a few pixels
            wide, which a quarter of the size does not resolve, at four times the cost.
        dense: Whether every separable convolution is a dense one instead, in encoder, pyramid and decoder.

    Raises:
        ValueError: If an option is out of range or a name is unknown.

    Cost at width 1, image 512x512, 21 classes: 2.72 M parameters, 4.56 G macs; 12.1 G macs at output stride 8; dense
    11.8 M parameters, 24.7 G macs. With the Xception encoder 41.0 M parameters, 50.1 G macs.

    Source: Chen et al. 2018, arXiv 1802.02611; Sandler et al. 2018, arXiv 1801.04381, section 6.2, for leaving out the
    encoder's head.

    Example:
        >>> import torch
        >>> network = DeepLabV3Plus(3, width_multiplier=0.25).eval()
        >>> network(torch.zeros(1, 3, 64, 48)).shape
        torch.Size([1, 3, 64, 48])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        encoder: str = "mobilenet_v2",
        output_stride: int = 16,
        width_multiplier: float = 1.0,
        decoder_channels: int = 256,
        dilations: Sequence[int] | None = None,
        encoder_head: bool = False,
        dropout: float = 0.5,
        enlarge: int = 1,
        dense: bool = False,
    ) -> None:
        super().__init__()
        _parts.check_counts(
            num_classes=num_classes, in_channels=in_channels, decoder_channels=decoder_channels, enlarge=enlarge
        )
        _parts.check_dropout(dropout)
        _parts.check_switches(encoder_head=encoder_head, dense=dense)
        if encoder not in ENCODERS:
            raise unknown_name("encoder", encoder, ENCODERS)
        if output_stride not in OUTPUT_STRIDES:
            raise ArgumentError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride!r}")
        dilations = _DILATIONS[output_stride] if dilations is None else _parts.check_dilations(dilations)
        if encoder == "mobilenet_v2":
            self.encoder = mobilenet_v2.Features(
                in_channels, width_multiplier, output_stride=output_stride, head=encoder_head
            )
        else:
            self.encoder = xception.Features(
                in_channels, width_multiplier, variant="aligned", middle_blocks=16, output_stride=output_stride
            )
        channels = divisible_channels(decoder_channels, width_multiplier)
        self.enlarge = enlarge
        self.aspp = SeparableASPP(self.encoder.out_channels, channels, dilations, dropout=dropout)
        self.aspp_conv = _separable(channels, channels)
        self.low_level = ConvNormActivation(self.encoder.low_level_channels, _LOW_LEVEL_CHANNELS, 1)
        self.decoder = _separable(channels + _LOW_LEVEL_CHANNELS, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        if dense:
            dense_twin_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify every pixel.

        Args:
            x: Images of shape (N, in_channels, H, W), floating point, any H and W.

        Returns:
            Logits of shape (N, num_classes, H, W).
        """
        out = x
        if self.enlarge > 1:
            size = [self.enlarge * n for n in x.shape[-2:]]
            out = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        low = out
        for index, module in enumerate(self.encoder):
            out = module(out)
            if index == self.encoder.low_level:
                low = out
        out = self.aspp_conv(self.aspp(out))
        out = F.interpolate(out, size=low.shape[-2:], mode="bilinear", align_corners=True)
        out = self.classifier(self.decoder(torch.cat([out, self.low_level(low)], 1)))
        return F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=True)


def _separable(in_channels: int, out_channels: int) -> DepthwiseSeparableConv2d:
    return DepthwiseSeparableConv2d(in_channels, out_channels, bias=False, norm="batch", activation="relu")
