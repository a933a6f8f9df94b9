"""The questions about ``torch.func`` transforms which torch answers in private only."""

from __future__ import annotations

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]


def is_active() -> bool:
    """Whether any ``torch.func`` transform is at work."""
    return _functorch.peek_interpreter_stack() is not None


def differentiates() -> bool:
    """Whether ``torch.func.grad`` or its kin is at work: custom operators' derivatives are out of its sight."""
    if not is_active():
        return False
    return any(entry.key().name in ("Grad", "Jvp") for entry in _functorch.get_interpreter_stack())


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transform, and so has neither memory nor a version of its own."""
    return _functorch.is_functorch_wrapped_tensor(tensor)
