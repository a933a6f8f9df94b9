"""What the arguments of the public functions must be: an error names the argument, its value and the rule."""

from __future__ import annotations

import torch
from torch import Tensor

from dwsep.errors import ArgumentError, unknown_name

RESIDUALS = ("input", "depthwise")

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(argument: str, value: object, x: Tensor, shape: tuple[int | None, ...], autocast: bool) -> None:
    """Whether a parameter fits the input; ``None`` in ``shape`` takes any positive size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(value).__name__}")
    if value.dim() != len(shape) or any(n != w if w is not None else n < 1 for n, w in zip(value.shape, shape)):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ArgumentError(f"{argument} must have shape ({wanted}), got {tuple(value.shape)}")
    if value.dtype != x.dtype and not autocast:
        raise ArgumentError(f"{argument} must have the dtype of x, {x.dtype}, got {value.dtype}")
    if value.device != x.device:
        raise ArgumentError(f"{argument} must be on the device of x, {x.device}, got {value.device}")


def check_input(x: object, weight: object, ndim: int) -> tuple[Tensor, bool, bool]:
    """The input with a batch axis, whether it had one, and whether autocast is on."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ArgumentError(
            f"x must have {ndim + 2} dimensions (N, C, {ndim} spatial), or {ndim + 1} unbatched, "
            f"got {x.dim()} with shape {tuple(x.shape)}"
        )
    if x.dtype not in _FLOATING:
        raise ArgumentError(f"x must have a floating-point dtype ({', '.join(map(str, _FLOATING))}), got {x.dtype}")
    batched = x.dim() == ndim + 2
    if not batched:
        x = x.unsqueeze(0)
    if x.shape[1] < 1:
        raise ArgumentError(f"x must have at least 1 channel, got shape {tuple(x.shape)}")
    device = x.device.type
    # Asking for autocast on a device which has none (meta) is an error in torch.
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return x, batched, known and torch.is_autocast_enabled(device)


def check_depthwise_weight(argument: str, weight: Tensor, x: Tensor, ndim: int, autocast: bool) -> None:
    check_tensor(argument, weight, x, (None, 1, *(None,) * ndim), autocast)
    if weight.shape[0] % x.shape[1]:
        raise ArgumentError(
            f"{argument} must have a multiple of x's {x.shape[1]} channels as its first size, got {weight.shape[0]}"
        )


def check_residual(residual: str, x: Tensor, inner: int, out: int, out_spatial: tuple[int, ...]) -> None:
    """Raise where what a residual adds does not fit the output."""
    if residual == "depthwise" and inner != out:
        raise ArgumentError(
            f"residual='depthwise' adds the depthwise output, so its channels must equal the output's, got {inner} and "
            f"{out}"
        )
    if residual == "input" and (x.shape[1] != out or tuple(x.shape[2:]) != tuple(out_spatial)):
        raise ArgumentError(
            f"residual='input' adds x, so x and the output must have the same channels and spatial size, got "
            f"{(x.shape[1], *x.shape[2:])} and {(out, *out_spatial)}"
        )


def residual_name(value: str | None) -> str:
    """``value`` as the operator takes it (``"none"`` for ``None``), or an error listing the valid names."""
    if value is None:
        return "none"
    if value not in RESIDUALS:
        if not isinstance(value, str):
            raise TypeError(f"residual must be None or a name, got {value!r} of type {type(value).__name__}")
        raise unknown_name("residual", value, RESIDUALS)
    return value
