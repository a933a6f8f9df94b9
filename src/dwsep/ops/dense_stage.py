"""``dwsep::dense_stage`` and its backward: a dense 2d convolution that applies its input's norm while loading.

As ``dwsep::depthwise_stage``, with a weight (K, C, kernel height, kernel width): a network's first convolution, and the
few others of a separable network.
"""

from __future__ import annotations

from dwsep.kernels import stage_reference
from dwsep.ops import _geometry_stage

NAME = "dense_stage"
_geometry_stage.define(NAME, stage_reference.dense_stage, stage_reference.dense_stage_backward)
