"""Layers: modules which hold parameters; what they compute is one functional call."""

from dwsep.nn._depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from dwsep.nn._separable import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

__all__ = [
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "DepthwiseSeparableConv1d",
    "DepthwiseSeparableConv2d",
    "DepthwiseSeparableConv3d",
]
