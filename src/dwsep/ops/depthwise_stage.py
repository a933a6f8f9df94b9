"""``dwsep::depthwise_stage`` and its backward: a depthwise convolution that applies its input's norm while loading.

As ``dwsep::pointwise_stage``; padding pads z, with zeros.
"""

from __future__ import annotations

from dwsep.kernels import stage_reference
from dwsep.kernels.triton import support
from dwsep.ops import _conv_stage

NAME = "depthwise_stage"
_conv_stage.define(
    NAME,
    stage_reference.stage,
    stage_reference.stage_backward,
    _conv_stage.GEOMETRY,
    cuda="depthwise_stage",
    cuda_runs=lambda x, weight: support.runs(x) and weight.shape[0] == x.shape[1],
)
