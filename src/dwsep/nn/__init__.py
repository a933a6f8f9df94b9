"""Layers: modules which hold parameters; what they compute is one functional call."""

from dwsep.nn._aspp import SeparableASPP
from dwsep.nn._blueprint import BlueprintSeparableConv2d, orthogonality_loss
from dwsep.nn._convnext import ConvNeXtBlock
from dwsep.nn._depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from dwsep.nn._factors import init_factors_, parameter_groups
from dwsep.nn._inverted_residual import InvertedResidual
from dwsep.nn._lazy import (
    LazyDepthwiseConv1d,
    LazyDepthwiseConv2d,
    LazyDepthwiseConv3d,
    LazyDepthwiseConvTranspose1d,
    LazyDepthwiseConvTranspose2d,
    LazyDepthwiseConvTranspose3d,
    LazyDepthwiseSeparableConv1d,
    LazyDepthwiseSeparableConv2d,
    LazyDepthwiseSeparableConv3d,
    LazyDepthwiseSeparableConvTranspose1d,
    LazyDepthwiseSeparableConvTranspose2d,
    LazyDepthwiseSeparableConvTranspose3d,
)
from dwsep.nn._lightweight import LightweightConv1d
from dwsep.nn._mixconv import MixConv2d
from dwsep.nn._separable import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d
from dwsep.nn._separable_transposed import (
    DepthwiseSeparableConvTranspose1d,
    DepthwiseSeparableConvTranspose2d,
    DepthwiseSeparableConvTranspose3d,
)
from dwsep.nn._squeeze_excite import DropPath, SqueezeExcite
from dwsep.nn._subseparable import SubseparableConv1d, SubseparableConv2d
from dwsep.nn._temporal import TemporalBlock
from dwsep.nn._transposed import DepthwiseConvTranspose1d, DepthwiseConvTranspose2d, DepthwiseConvTranspose3d
from dwsep.nn._xception import XceptionBlock

__all__ = [
    "BlueprintSeparableConv2d",
    "ConvNeXtBlock",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "DepthwiseConvTranspose1d",
    "DepthwiseConvTranspose2d",
    "DepthwiseConvTranspose3d",
    "DepthwiseSeparableConv1d",
    "DepthwiseSeparableConv2d",
    "DepthwiseSeparableConv3d",
    "DepthwiseSeparableConvTranspose1d",
    "DepthwiseSeparableConvTranspose2d",
    "DepthwiseSeparableConvTranspose3d",
    "DropPath",
    "InvertedResidual",
    "LazyDepthwiseConv1d",
    "LazyDepthwiseConv2d",
    "LazyDepthwiseConv3d",
    "LazyDepthwiseConvTranspose1d",
    "LazyDepthwiseConvTranspose2d",
    "LazyDepthwiseConvTranspose3d",
    "LazyDepthwiseSeparableConv1d",
    "LazyDepthwiseSeparableConv2d",
    "LazyDepthwiseSeparableConv3d",
    "LazyDepthwiseSeparableConvTranspose1d",
    "LazyDepthwiseSeparableConvTranspose2d",
    "LazyDepthwiseSeparableConvTranspose3d",
    "LightweightConv1d",
    "MixConv2d",
    "SeparableASPP",
    "SqueezeExcite",
    "SubseparableConv1d",
    "SubseparableConv2d",
    "TemporalBlock",
    "XceptionBlock",
    "init_factors_",
    "orthogonality_loss",
    "parameter_groups",
]
