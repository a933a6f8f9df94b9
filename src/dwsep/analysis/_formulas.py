"""Closed formulas of operators: multiply-adds from shapes, and what kind of work it is.

One table serves the analysis of networks and ``torch.utils.flop_counter``. The arguments of a formula are an operator's
own, with a shape in the place of each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Shape = Sequence[int]
Formula = Callable[..., int]

# Operators which only rename memory or ask for some: they move nothing.
_FREE = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh", "sym_size")
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_ACTIVATIONS = (
    *("relu", "hardtanh", "silu", "sigmoid", "gelu", "hardswish", "hardsigmoid", "leaky_relu", "tanh", "elu", "mish"),
    *("softplus", "softmax", "log_softmax", "threshold", "clamp", "prelu", "erf", "exp"),
)
_POOLINGS = ("max_pool", "avg_pool", "mean", "amax", "sum")
_RESAMPLINGS = ("upsample", "grid_sampler", "pixel_shuffle", "interpolate")
_SUMS = ("add", "sub", "mul", "div", "neg", "pow", "sqrt", "rsqrt", "maximum", "minimum", "rsub", "addcmul")
_COPIES = (
    "cat",
    "clone",
    "copy",
    "contiguous",
    "pad",
    "stack",
    "repeat",
    "index",
    "roll",
    "flip",
    "gather",
    "_to_copy",
)


def kind_of(name: str) -> str:
    """What kind of work an operator without multiply-adds does, by its name without namespace and overload."""
    base = name.removeprefix("_").removeprefix("native_").removeprefix("safe_").removesuffix("_")
    if any(norm in base for norm in _NORMS):
        return "norm"
    if base.startswith(_POOLINGS) or "_pool" in base:
        return "pooling"
    if base.startswith(_ACTIVATIONS):
        return "activation"
    if any(word in base for word in _RESAMPLINGS):
        return "resampling"
    if base.startswith(_SUMS):
        return "elementwise"
    if any(word in base for word in _COPIES):
        return "copy"
    return "other"


def is_free(name: str) -> bool:
    """Whether an operator moves no data, beside those that return a view."""
    return name in _FREE


def _positions(shape: Shape, ndim: int) -> int:
    """Spatial positions times batch."""
    return shape[0] * math.prod(shape[len(shape) - ndim :])


def _convolution(x: Shape, weight: Shape, out: Shape, transposed: bool) -> int:
    return math.prod(weight) * _positions(x if transposed else out, len(weight) - 2)


def convolution(
    x: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *_: Any, out: Shape
) -> int:
    """One multiply-add per weight and output position, or per input position of a transposed convolution."""
    return _convolution(x, weight, out, transposed)


def convolution_backward(grad: Shape, x: Shape, weight: Shape, *rest: Any, out: Any = None) -> int:
    """As many again for each of the gradients of the input and of the weight that are asked for."""
    transposed, mask = rest[4], rest[7]
    return _convolution(x, weight, grad, transposed) * (bool(mask[0]) + bool(mask[1]))


def depthwise(x: Shape, weight: Shape, *_: Any, out: Shape) -> int:
    """``dwsep::depthwise_conv``: one multiply-add per tap and output."""
    return _convolution(x, weight, out, transposed=False)


def depthwise_backward(grad: Shape, x: Shape, weight: Shape, *rest: Any, out: Any = None) -> int:
    """Its two products of the same size, and a third one where an activation's input has to be computed again."""
    activation, mask = rest[4], rest[5]
    again = activation != "none" and any(mask)
    return _convolution(x, weight, grad, transposed=False) * (bool(mask[0]) + bool(mask[1]) + again)


def separable(x: Shape, depthwise_weight: Shape, pointwise_weight: Shape, *_: Any, out: Shape) -> int:
    """``dwsep::separable_conv``: C * taps and C * K multiply-adds per output position."""
    return (math.prod(depthwise_weight) + math.prod(pointwise_weight)) * _positions(out, len(depthwise_weight) - 2)


def separable_backward(
    grad: Shape, x: Shape, depthwise_weight: Shape, pointwise_weight: Shape, *rest: Any, out: Any = None
) -> int:
    """The products that the asked-for gradients need, and what they need of the forward once more."""
    inner_activation, activation, mask = rest[5], rest[6], rest[-1]
    positions = _positions(grad, len(depthwise_weight) - 2)
    taps, mixing = math.prod(depthwise_weight) * positions, math.prod(pointwise_weight) * positions
    below = bool(mask[0] or mask[1] or mask[3])
    output_again = activation != "none" and any(mask)
    inner_again = bool(mask[2]) or output_again or (below and inner_activation != "none")
    products = taps * (inner_again + bool(mask[0]) + bool(mask[1]))
    return products + mixing * (output_again + below + bool(mask[2]))


def separable_packed(
    x: Shape, packed: Shape, inner_channels: int, out_channels: int, kernel_size: Shape, *_: Any, out: Shape
) -> int:
    """``dwsep::separable_conv_packed``."""
    return inner_channels * (math.prod(kernel_size) + out_channels) * _positions(out, len(kernel_size))


def pointwise_packed(x: Shape, packed: Shape, out_channels: int, *_: Any, out: Shape) -> int:
    """``dwsep::pointwise_conv_packed``."""
    return x[1] * out_channels * _positions(out, 2)


def stage(x: Shape, scale: Any, shift: Any, activation: str, weight: Shape, *_: Any, out: Any) -> int:
    """``dwsep::depthwise_stage`` and ``dwsep::pointwise_stage``, whose first result is the convolution's."""
    return _convolution(x, weight, out[0], transposed=False)


def stage_backward(grad: Shape, y: Shape, correction: Any, x: Shape, *rest: Any, out: Any = None) -> int:
    """Two products of the forward's size, as far as asked for."""
    weight, mask = rest[3], rest[-1]
    return _convolution(x, weight, grad, transposed=False) * (bool(mask[0]) + bool(mask[1]))


def product(a: Shape, b: Shape, *_: Any, out: Any = None) -> int:
    """``mm`` and ``bmm``: (..., M, K) times (..., K, N)."""
    return math.prod(a) * b[-1]


def product_sum(c: Any, a: Shape, b: Shape, *_: Any, out: Any = None, **__: Any) -> int:
    """``addmm`` and ``baddbmm``."""
    return product(a, b)


def attention(query: Shape, key: Shape, value: Shape, *_: Any, out: Any = None, **__: Any) -> int:
    """Queries times keys, and the weights times values; masks and causality save nothing."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, out: Any = None, **__: Any) -> int:
    """The scores once more, and two products for each of the forward's."""
    scores, mixed = math.prod(query[:-1]) * key[-2] * query[-1], math.prod(query[:-1]) * key[-2] * value[-1]
    return 3 * scores + 2 * mixed


# By namespace and name. The kind of a convolution or product depends on its arguments: see _records.
FORMULAS: dict[str, Formula] = {
    "aten::convolution": convolution,
    "aten::_convolution": convolution,
    "aten::convolution_backward": convolution_backward,
    "aten::mm": product,
    "aten::bmm": product,
    "aten::addmm": product_sum,
    "aten::baddbmm": product_sum,
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_scaled_dot_product_flash_attention": attention,
    "aten::_scaled_dot_product_efficient_attention": attention,
    "aten::_scaled_dot_product_cudnn_attention": attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "aten::_scaled_dot_product_flash_attention_backward": attention_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": attention_backward,
    "aten::_scaled_dot_product_cudnn_attention_backward": attention_backward,
    "dwsep::depthwise_conv": depthwise,
    "dwsep::depthwise_conv_backward": depthwise_backward,
    "dwsep::separable_conv": separable,
    "dwsep::separable_conv_backward": separable_backward,
    "dwsep::separable_conv_packed": separable_packed,
    "dwsep::pointwise_conv_packed": pointwise_packed,
    "dwsep::depthwise_stage": stage,
    "dwsep::depthwise_stage_backward": stage_backward,
    "dwsep::pointwise_stage": stage,
    "dwsep::pointwise_stage_backward": stage_backward,
}
