"""MobileNetV2 and its dense twin.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv 1801.04381, Table 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from dwsep.networks import _parts
from dwsep.networks._dense import dense_twin_
from dwsep.networks._parts import ConvNormActivation, divisible_channels
from dwsep.nn import InvertedResidual

# (expansion, out_channels at width 1, blocks, stride of the first of them)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
# The stage whose stride 2 becomes 1 with the small stem.
_SMALL_STEM_UNSTRIDED = 5


class Features(nn.Sequential):
    """The convolutions of MobileNetV2, with torchvision's names: a stem, seventeen blocks, and perhaps the last one.

    Args:
        in_channels: Image channels.
        width_multiplier: Scales every channel count but the last, which it only widens.
        stem: "imagenet" or "small"; see :class:`MobileNetV2`.
        output_stride: 8, 16 or 32: where the stride would grow beyond it, blocks are dilated instead.
        head: Whether the 1x1 convolution to 1280 channels comes last.

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
        output_stride: int = 32,
        *,
        head: bool = True,
    ) -> None:
        small = stem == "small"
        channels = divisible_channels(_STEM_CHANNELS, width_multiplier)
        modules: list[nn.Module] = [
            ConvNormActivation(in_channels, channels, 3, 1 if small else 2, activation=nn.ReLU6)
        ]
        total, dilation = (1 if small else 2), 1
        low_level = low_level_channels = 0
        for index, (expansion, width, blocks, stride) in enumerate(_STAGES):
            if small and index == _SMALL_STEM_UNSTRIDED:
                stride = 1
            if stride == 2 and total == output_stride:
                stride, dilation = 1, dilation * 2
            total *= stride
            out = divisible_channels(width, width_multiplier)
            for block in range(blocks):
                step = stride if block == 0 else 1
                modules.append(InvertedResidual(channels, out, stride=step, dilation=dilation, expansion=expansion))
                channels = out
            if total == 4:
                low_level, low_level_channels = len(modules) - 1, channels
        if head:
            last = divisible_channels(_HEAD_CHANNELS, max(1.0, width_multiplier))
            modules.append(ConvNormActivation(channels, last, 1, activation=nn.ReLU6))
            channels = last
        super().__init__(*modules)
        self.out_channels = channels
        self.low_level, self.low_level_channels = low_level, low_level_channels


class MobileNetV2(nn.Module):
    """MobileNetV2 image classifier, with torchvision's names, whose weights load as they are.

    The ``"imagenet"`` stem has stride 2, and the final feature map is 1/32 of the image. The ``"small"`` stem, for
    images such as 28x28 and 32x32, keeps stride 1 in the stem and in the sixth stage: 28x28 ends at 4x4.

    Args:
        num_classes: Number of logits.
        in_channels: Image channels.
        width_multiplier: Scales every channel count, rounded to multiples of 8.
        stem: "imagenet" or "small".
        dropout: Probability of dropping a feature before the classifier.
        dense: Whether expansion and depthwise convolution of every block become one dense 3x3 convolution.

    Raises:
        ValueError: If an option is out of range or stem is unknown.

    Cost at width 1, image 224x224, 1,000 classes: 3.50 M parameters, 301 M macs.

    Source: Sandler et al. 2018, arXiv 1801.04381, Table 2.

    Example:
        >>> import torch
        >>> network = MobileNetV2(10, in_channels=1, width_multiplier=0.25, stem="small")
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
        dropout: float = 0.2,
        dense: bool = False,
    ) -> None:
        super().__init__()
        _parts.check_classifier(num_classes, in_channels, stem, dropout, dense=dense)
        self.features = Features(in_channels, width_multiplier, stem)
        linear = nn.Linear(self.features.out_channels, num_classes)
        _parts.init_classifier_(linear)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
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
