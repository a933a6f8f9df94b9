"""What the operators' Python registrations share: autocast, vmap, and the fall through to differentiable code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.ops._library import LIBRARY


def gradient(name: str, reference: Callable[..., Any], *args: Any) -> Any:
    """Gradients from the backward operator, or from its differentiable reference where they are differentiated again.

    A gradient is differentiated again when backward runs in grad mode (``create_graph=True``).
    """
    if torch.is_grad_enabled():
        return reference(*args)
    return getattr(torch.ops.dwsep, name)(*args)


def register_autocast(name: str, tensors: int) -> None:
    """Cast the first ``tensors`` arguments of an operator to autocast's dtype, as convolutions are in torch."""
    for device in ("CPU", "CUDA"):
        key = getattr(torch._C.DispatchKey, f"Autocast{device}")

        def cast(*args: Any, device: str = device.lower(), key: Any = key) -> Any:
            dtype = torch.get_autocast_dtype(device)
            casted = [
                arg.to(dtype)
                if isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
                else arg
                for arg in args[:tensors]
            ]
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return getattr(torch.ops.dwsep, name)(*casted, *args[tensors:])

        LIBRARY.impl(name, cast, f"Autocast{device}")


def register_vmap(name: str, reference: Callable[..., Any]) -> None:
    """vmap over the input alone folds into the batch axis; over weights it maps the reference, a slice at a time."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Tensor, int]:
        # Only tensors are mapped; for the lists of the geometry torch passes lists of None.
        dims = [dim if isinstance(arg, Tensor) else None for arg, dim in zip(args, in_dims, strict=True)]
        if dims[0] is not None and all(dim is None for dim in dims[1:]):
            x = args[0].movedim(dims[0], 0)
            out = getattr(torch.ops.dwsep, name)(x.flatten(0, 1), *args[1:])
            return out.unflatten(0, x.shape[:2]), 0
        slices = [
            reference(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(slices), 0

    torch.library.register_vmap(f"dwsep::{name}", rule, lib=LIBRARY)
