"""The questions about what watches a call (transforms, forward mode, tracers) which torch answers in private only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad


def is_recorded() -> bool:
    """Whether torch records what runs, so that it must see the module's own operations."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


def is_active() -> bool:
    """Whether any ``torch.func`` transform or forward-mode differentiation is at work."""
    return _functorch.peek_interpreter_stack() is not None or _is_forward()


def _is_forward() -> bool:
    """Whether tensors may carry tangents, which a custom operator would drop without a word."""
    return forward_ad._current_level >= 0


def differentiates() -> bool:
    """Whether ``torch.func.grad``, its kin or forward mode is at work, which see no custom operator's derivative."""
    if not is_active():
        return False
    return _is_forward() or any(entry.key().name in ("Grad", "Jvp") for entry in _functorch.get_interpreter_stack())


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform, and so has neither memory nor a version of its own."""
    return _functorch.is_functorch_wrapped_tensor(tensor)
