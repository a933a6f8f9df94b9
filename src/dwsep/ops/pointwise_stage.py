"""``dwsep::pointwise_stage`` and its backward: a 1x1 convolution that applies its input's norm while loading.

x is the raw output of the convolution before; z = activation(scale * x + shift) exists in the cache alone. Returned are
the raw output y and, float64 (2, K), the sums of y and of its squares. Operators without derivatives of their own: who
chains stages calls the backward (docs/design/stages.md).
"""

from __future__ import annotations

from dwsep.kernels import stage_reference
from dwsep.ops import _conv_stage

NAME = "pointwise_stage"
_conv_stage.define(NAME, stage_reference.stage, stage_reference.stage_backward, cuda="pointwise")
