"""Dense twins: the same outline with a dense convolution wherever a separable one was, to compare with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dwsep.nn import DepthwiseSeparableConv2d, InvertedResidual, LightweightConv1d


class DenseConv2d(nn.Module):
    """A dense convolution in place of a separable layer: its geometry, last norm, activation and shortcut.

    Args:
        layer: What it stands for; its order must be depthwise first and its padding keep the size.
    """

    def __init__(self, layer: DepthwiseSeparableConv2d) -> None:
        super().__init__()
        if layer.order != "depthwise_first" or layer.residual == "depthwise" or layer.padding_mode != "zeros":
            raise ValueError(f"no dense twin for {layer!r}")
        self.conv = _dense(layer.in_channels, layer.out_channels, layer.depthwise, layer.pointwise.bias is not None)
        self.norm = layer.norm
        self.activation = layer.activation
        self.residual = layer.residual == "input"

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        out = self.conv(x)
        for module in (self.norm, self.activation):
            out = out if module is None else module(out)
        return out + x if self.residual else out


class FusedInvertedResidual(nn.Module):
    """An inverted residual whose expansion and depthwise convolution are one dense convolution.

    Args:
        block: What it stands for.

    Source: Tan and Le, "EfficientNetV2", arXiv:2104.00298, figure 2 (Fused-MBConv).
    """

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.conv = _dense(block.in_channels, block.hidden_channels, block.depthwise, block.depthwise.bias is not None)
        self.norm = block.depthwise_norm
        self.activation = block.depthwise_activation
        if hasattr(block, "squeeze_excite"):
            self.squeeze_excite = block.squeeze_excite
        self.project, self.project_norm, self.drop_path = block.project, block.project_norm, block.drop_path
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        out = x
        for module in self._modules.values():
            out = out if module is None else module(out)
        return out + x if self.residual else out


def dense_twin_(model: nn.Module) -> nn.Module:
    """Put a dense convolution in the place of every separable one, in place.

    A depthwise and a pointwise convolution become one of the same window; the expansion and the depthwise convolution
    of an inverted residual become one; a lightweight convolution becomes one without shared kernels. The norm and
    activation after each stay, those between two factors go. Weights are drawn anew.

    Args:
        model: A network of this package.

    Returns:
        The model.

    Example:
        >>> twin = dense_twin_(nn.Sequential(DepthwiseSeparableConv2d(8, 16, bias=False)))
        >>> twin[0].conv
        Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    for name, child in model.named_children():
        if isinstance(child, DepthwiseSeparableConv2d):
            setattr(model, name, DenseConv2d(child))
        elif isinstance(child, InvertedResidual):
            setattr(model, name, FusedInvertedResidual(child))
        elif isinstance(child, LightweightConv1d):
            setattr(model, name, _dense_1d(child))
        else:
            dense_twin_(child)
    return model


def _dense(in_channels: int, out_channels: int, depthwise: Any, bias: bool) -> nn.Conv2d:
    window = depthwise.geometry
    if window.padding is None or any(low != high for low, high in window.padding):
        raise ValueError(f"no dense twin for padding {depthwise.padding!r}: it is not the same on both sides")
    sides = tuple(low for low, _ in window.padding)
    conv = nn.Conv2d(in_channels, out_channels, window.kernel_size, window.stride, sides, window.dilation, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _dense_1d(layer: LightweightConv1d) -> nn.Conv1d:
    (taps,), (dilation,) = layer.geometry.kernel_size, layer.geometry.dilation
    return nn.Conv1d(
        layer.in_channels, layer.in_channels, taps, padding=dilation * (taps - 1) // 2, dilation=dilation,
        bias=layer.bias is not None,
    )  # fmt: skip
