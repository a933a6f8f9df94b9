"""What holds a network's modules and parameters from outside, and goes on holding them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dwsep.errors import ArgumentError


def check_optimizers(optimizers: Any) -> tuple[Any, ...]:
    """The argument ``optimizers`` as a tuple."""
    several = optimizers if isinstance(optimizers, (tuple, list)) else (optimizers,)
    for optimizer in several:
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
            raise TypeError(f"optimizers must be torch.optim optimizers, got {type(optimizer).__name__}")
    return tuple(several)


def rebind(optimizers: Iterable[Any], successors: Mapping[nn.Parameter, Sequence[nn.Parameter]]) -> None:
    """Put new parameters where optimizers had the old ones: into the same group, at the same place, without state."""
    by_id = {id(old): list(new) for old, new in successors.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group.get("params"), (list, tuple)):
                group["params"] = [one for old in group["params"] for one in by_id.get(id(old), [old])]
        for old in successors:
            optimizer.state.pop(old, None)


def check_not_accelerated(model: nn.Module) -> None:
    """Raise where a part of the model runs by a program of ``accelerate_``, which knows the modules as they were."""
    for name, module in model.named_modules():
        forward = module.__dict__.get("forward")
        if forward is not None and type(forward).__module__.startswith("dwsep.accelerate"):
            raise ArgumentError(
                f"model must not be accelerated, but {name or 'it'} is: call dwsep.revert_(model) before and "
                "dwsep.accelerate_(model) after"
            )
