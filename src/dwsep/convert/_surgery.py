"""A module becomes another one in place: whoever holds it, holds the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from dwsep.errors import ArgumentError


class State(NamedTuple):
    """What a module is: its class and everything in it."""

    kind: type[nn.Module]
    content: dict[str, Any]


def state_of(module: nn.Module) -> State:
    """A module as it is now, to go back to."""
    return State(type(module), dict(module.__dict__))


def successor(module: nn.Module, new: nn.Module) -> State:
    """What ``module`` becomes: ``new``, with the hooks and the users' own attributes of ``module``.

    A hook's handle goes on working, since the dictionaries of hooks are the same objects.
    """
    kind: Any = type(module)
    fresh = kind() if isinstance(module, nn.Sequential) else kind(1, 1, 1)
    own = {name: value for name, value in module.__dict__.items() if name not in fresh.__dict__}
    hooks = {name: value for name, value in module.__dict__.items() if "hook" in name}
    return State(type(new), {**own, **new.__dict__, **hooks, "training": module.training})


def become(module: nn.Module, state: State) -> None:
    """Turn a module into another, the object staying the same: shared uses, references and the root included."""
    module.__class__ = state.kind
    module.__dict__.clear()
    module.__dict__.update(state.content)


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
