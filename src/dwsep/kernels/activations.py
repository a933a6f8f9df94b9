"""The activations that kernels can fuse: a name, the function, and its derivative as differentiable aten calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.errors import unknown_name

aten = torch.ops.aten


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(grad, x)
    sigmoid = torch.sigmoid(x)  # aten's own has no derivative
    return grad * sigmoid * (1 + x * (1 - sigmoid))


FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}
BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, x: grad,
    "relu": lambda grad, x: aten.threshold_backward(grad, x, 0),
    "relu6": lambda grad, x: aten.hardtanh_backward(grad, x, 0.0, 6.0),
    "silu": _silu_backward,
    "hardswish": lambda grad, x: aten.hardswish_backward(grad, x),
    "gelu": lambda grad, x: aten.gelu_backward(grad, x),
}
NAMES = tuple(name for name in FORWARD if name != "none")


def activation_name(argument: str, value: str | None) -> str:
    """``value`` as the operators take it (``"none"`` for ``None``), or an error listing the valid names."""
    if value is None:
        return "none"
    if value not in NAMES:
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be None or a name, got {value!r} of type {type(value).__name__}")
        raise unknown_name(argument, value, NAMES)
    return value
