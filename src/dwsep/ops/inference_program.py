"""``dwsep::inference_program``: a network's inference, or what of it the kernels run, in one call.

All tensors are float32 and lie channels last.
Steps run one behind the other on values (N, C, H, W), each an input, in a workspace that lasts as long as the call, or
an output. Both are rows of int64 tables, and so is what a step needs to know:

- values: N, C, H, W, :class:`Home`, and the input's or output's number, the place in the workspace in floats, or the
  row of the value of whose channels this one is some, and the first of these;
- steps: :class:`Kind`, the values read and written, the second operand's value or -1, the activation and that between
  the factors of a separable convolution by their positions in :data:`ACTIVATIONS`, the place of the packed weights in
  ``weights`` in floats, the channels between the factors, kernel size, stride and dilation (height, width), padding
  (top, bottom, left, right), and of the 1x1 convolution in front of a depthwise or separable one its weights' place, or
  -1 for none, and its activation, the value which gates a pointwise step's input, or -1, that of the means over H and W
  which a depthwise step makes of its output, or -1, and whether the weights of pointwise convolutions were packed with
  ``bfloat16``: 0 or 1.

Pointwise steps, and depthwise ones that add nothing, take and make parts of values; other steps do not.

Everything is checked, so that no table makes a step read or write outside its tensors; that a value in the workspace is
not overwritten too early is the business of who lays them out. The native library's alone: there is no reference of it
beside the operators that it runs, and nothing to differentiate.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from dwsep.ops._library import LIBRARY, packed_separable_size
from dwsep.ops._stage import empty_channels_last

GATES = ("sigmoid", "hardsigmoid")
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu", *GATES)


class Home(IntEnum):
    """Where a value's memory is."""

    INPUT = 0
    WORKSPACE = 1
    OUTPUT = 2
    PART = 3  # that of the value whose part it is


class Kind(IntEnum):
    """What a step computes."""

    DENSE = 0
    DEPTHWISE = 1
    POINTWISE = 2
    SEPARABLE = 3
    POOL = 4  # the means over H and W
    GATE = 5  # the product with one factor for each image's channel
    ACTIVATION = 6
    LAYER_NORM = 7  # over the channels of each pixel; its weights are scale and shift per channel, and eps


LIBRARY.define("pack_depthwise_weights(Tensor weight, Tensor? bias) -> Tensor")
LIBRARY.define(
    "inference_program(Tensor[] inputs, Tensor weights, Tensor values, Tensor steps, int[] output_sizes, "
    "int workspace) -> Tensor[]"
)


@torch.library.register_fake("dwsep::pack_depthwise_weights", lib=LIBRARY)
def _(weight, bias):
    taps = weight[0].numel()
    return weight.new_empty(packed_separable_size(weight.shape[0], taps, 0, bfloat16=False))


@torch.library.register_fake("dwsep::inference_program", lib=LIBRARY)
def _(inputs, weights, values, steps, output_sizes, workspace):
    sizes = [output_sizes[i : i + 4] for i in range(0, len(output_sizes), 4)]
    return [empty_channels_last(weights.new_empty(size[:1]), size[1], size[2:]) for size in sizes]
