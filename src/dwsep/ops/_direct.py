"""Operators called without the dispatcher's Python in between, which takes longer than the kernels of a small layer.

A compiler, a mode, a transform, autocast and a tensor's own class have to see the operator itself. Where there is none
of them and autograd alone has to know, the kernels are called from here. Both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dwsep import _functorch
from dwsep.geometry import ConvGeometry


def call_key(geometry: ConvGeometry, options: tuple[str, ...], x: Tensor, *weights: Tensor | None) -> Any:
    """All that decides how a call runs and whether its arguments fit; ``None`` where something has to see the call."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_function_stack()
        or torch._C._is_any_autocast_enabled()
        or _functorch.is_recorded()
        or _functorch.is_active()
        or not _is_plain(x)
    ):
        return None
    key: list[Any] = [geometry, options, x.shape, x.stride(), x.dtype, x.device]
    for weight in weights:
        if weight is None:
            key.append(None)
        elif _is_plain(weight):
            key.append((weight.shape, weight.dtype, weight.device))
        else:
            return None
    key.append(wants_gradient(x, *weights))
    return tuple(key)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will differentiate what is computed of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _is_plain(value: object) -> bool:
    kind = type(value)
    return (kind is Tensor or kind is nn.Parameter) and value.layout is torch.strided  # type: ignore[attr-defined]


def without_autograd(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator for calls which nothing differentiates."""

    def call(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def with_autograd(
    operator: Callable[..., Tensor],
    setup_context: Callable[[Any, tuple[Any, ...], Tensor], None],
    gradient: Callable[[Any, Tensor], tuple[Any, ...]],
) -> Callable[..., Tensor]:
    """An operator with the derivative that was registered for it."""
    plain = without_autograd(operator)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            out = plain(*args)
            setup_context(ctx, args, out)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            return gradient(ctx, grad)

    return Direct.apply
