"""The package's own layers, as chains like everybody's."""

from __future__ import annotations

from typing import Any

from torch import nn

from dwsep.nn import DepthwiseConv2d, DepthwiseSeparableConv2d, LightweightConv1d
from dwsep.nn._depthwise import _DepthwiseConv
from dwsep.nn._separable import _DepthwiseSeparableConv


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of the package's layers, which choose their kernels themselves.

    The package's blocks are not: they are made of layers and torch's modules, and read like everybody's.
    """
    return isinstance(module, (_DepthwiseConv, _DepthwiseSeparableConv, LightweightConv1d))


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a depthwise convolution of the package's that a stage can run."""
    if type(module) is not DepthwiseConv2d or module.padding_mode != "zeros":
        return False
    return module.activation is None and module.depth_multiplier == 1 and module.in_channels > 1


def is_chain(module: nn.Module) -> bool:
    """Whether a module is a separable layer which computes what its parts do in a row, whatever its input's size."""
    if type(module) is not DepthwiseSeparableConv2d or not is_depthwise(module.depthwise):
        return False
    return module.residual is None or module.depthwise.padding == "same"


def run_parts(layer: Any, x: Any) -> Any:
    """A separable layer's forward without its choice of kernels and its checks: for reading it."""
    return layer._composed(x, check_sizes=False)
