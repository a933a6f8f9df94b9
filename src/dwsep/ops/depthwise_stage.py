"""``dwsep::depthwise_stage`` and its backward: a depthwise convolution that applies its input's norm while loading.

As ``dwsep::pointwise_stage``; padding pads z, with zeros.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.triton import support
from dwsep.ops import _conv_stage, _stage_cuda
from dwsep.ops._stage import channels_last, gradients

NAME = "depthwise_stage"
_conv_stage.define(NAME, stage_reference.stage, stage_reference.stage_backward, _conv_stage.GEOMETRY)


def _on_triton(x: Tensor, weight: Tensor) -> bool:
    return support.runs(x) and weight.shape[0] == x.shape[1]


def _forward_cuda(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Triton's kernels where they run, else PyTorch's."""
    if not _on_triton(x, weight):
        bias, *geometry = rest
        y, sums = stage_reference.stage(x, scale, shift, activation, weight, bias, geometry)
        return channels_last(y), sums
    from dwsep.kernels.triton import depthwise_stage  # needs triton, which `import dwsep` does not

    return depthwise_stage.forward(x, scale, shift, activation, weight, *rest)


def _backward_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    grad, y, correction, x, scale, shift, activation, weight, has_bias, *geometry, mask = arguments
    if _on_triton(x, weight):
        from dwsep.kernels.triton import depthwise_stage

        found = depthwise_stage.backward(*arguments)
    else:
        found = stage_reference.stage_backward(
            grad, y, correction, x, scale, shift, activation, weight, has_bias, geometry, mask
        )
    return gradients(found, x, scale, weight, has_bias, mask)


_stage_cuda.register(NAME, _forward_cuda)
_stage_cuda.register(f"{NAME}_backward", _backward_cuda)
