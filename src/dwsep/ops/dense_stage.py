"""``dwsep::dense_stage`` and its backward: a dense 2d convolution that applies its input's norm while loading.

As ``dwsep::depthwise_stage``, with a weight (K, C, kernel height, kernel width): a network's first convolution, and the
few others of a separable network.
"""

from __future__ import annotations

from dwsep.kernels import stage_reference
from dwsep.ops import _conv_stage

NAME = "dense_stage"
_conv_stage.define(
    NAME,
    stage_reference.dense_stage,
    stage_reference.dense_stage_backward,
    _conv_stage.GEOMETRY,
    cuda="dense_stage",
)
