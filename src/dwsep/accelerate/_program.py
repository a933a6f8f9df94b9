"""A forward as a list of steps over numbered values: stages that run fused, and calls that run as they were."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.accelerate import _resizing

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass
class Stage:
    """Convolution, batch norm, activation and a sum, each of which may be missing, from one value to another."""

    name: str
    input: int
    output: int = -1
    conv: nn.Conv2d | None = None
    norm: nn.BatchNorm2d | None = None
    activation: str = "none"
    residual: int | None = None
    # In place of one convolution several, all depthwise or all 1x1, which take the input's channels in turn.
    mixed: tuple[nn.Conv2d, ...] = ()
    # From which to which channel of the norm those of the convolution go, where they are not all of them.
    norm_channels: tuple[int, int] | None = None
    # Of inference alone: a module and the name of its parameter with a factor for each channel, behind the norm.
    scale: tuple[nn.Module, str] | None = None
    # The modules in whose place a convolution was made.
    stands_for: tuple[nn.Module, ...] = ()

    @property
    def is_elementwise(self) -> bool:
        """Whether it is an activation and a sum, or one of them, alone."""
        return not self.convs and self.norm is None

    @property
    def is_open(self) -> bool:
        """Whether nothing follows its convolution and norm."""
        return self.activation == "none" and self.residual is None and self.scale is None

    @property
    def convs(self) -> tuple[nn.Conv2d, ...]:
        """The convolutions: none, one, or several side by side."""
        return self.mixed if self.conv is None else (self.conv,)


@dataclass
class Product:
    """A value times another, one of which may gate the other's channels as squeeze-and-excite does."""

    left: int
    right: int
    output: int = -1


class Value(int):
    """The number of a value, where the arguments of a call hold one."""


class OnImages:
    """A module for images (N, H, W, C), of those (N, C, H, W)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """What it makes of an image, as it made of the permuted one."""
        return self.module(x.permute(CHANNELS_LAST)).permute(CHANNELS_FIRST)


@dataclass
class Call:
    """A step which runs as the forward had it: a module, a function, a method's name, or an attribute's owner."""

    kind: str
    target: Any
    args: Any
    kwargs: dict[str, Any]
    output: int = -1
    # Whether it only looks at what it takes, and returns nothing which shares its memory.
    looks: bool = False
    # "kept" or "dropped" axes where it is the mean over all pixels of its only tensor.
    pools: str | None = None
    # A module whose weight (K, C) it multiplies its only tensor with, over the last axis.
    linear: nn.Linear | None = None
    # A module which is a layer norm over the channels of its only tensor (N, C, H, W).
    layer_norm: nn.LayerNorm | None = None
    # A module which is a layer norm over the last axis of its only tensor.
    last_norm: nn.LayerNorm | None = None
    # The axes of its only tensor (4 of them) in the order in which it puts them.
    permutes: tuple[int, ...] | None = None
    # Whether it joins all axes of its only tensor behind the first.
    flattens: bool = False
    # "sigmoid" or "hardsigmoid" where it is that of its only tensor.
    gate: str | None = None
    # Whether it is torch's interpolation.
    resizes: bool = False
    # The values which it puts one behind the other along the channels, where that is all it does.
    joins: tuple[int, ...] = ()
    # Which channels of its only tensor it returns, all pixels and images of them, where that is all it does.
    cuts: slice | None = None


Step = Stage | Call | Product


@dataclass
class Program:
    """The steps of a module's forward; value 0 is its input, the last step's results are its output."""

    steps: list[Step]
    outputs: list[Any]
    output_spec: Any
    values: int
    # Modules whose code was followed, and modules which are part of stages: what the program relies on.
    inside: list[nn.Module]
    parts: list[nn.Module]
    skipped: list[nn.Module]
    last_use: dict[int, int] = field(default_factory=dict)

    def stages(self) -> list[Stage]:
        """The fused steps with a convolution or a norm in them."""
        return [step for step in self.steps if isinstance(step, Stage) and not step.is_elementwise]

    @cached_property
    def stage_modules(self) -> list[nn.Module]:
        """The stages' convolutions and norms."""
        modules = (module for stage in self.stages() for module in (*stage.convs, stage.norm))
        return [module for module in modules if module is not None]

    def takers(self) -> dict[int, list[int]]:
        """The positions of the steps that take each value."""
        found: dict[int, list[int]] = {value: [] for value in range(self.values)}
        for index, step in enumerate(self.steps):
            for value in dict.fromkeys(inputs_of(step)):
                found[value].append(index)
        return found

    def users(self) -> dict[int, int]:
        """How many steps take each value; what the program returns counts as one more."""
        counts = dict.fromkeys(range(self.values), 0)
        for step in self.steps:
            for value in inputs_of(step):
                counts[value] += 1
        for value in values_in(self.outputs):
            counts[value] += 1
        return counts


def sequence_of(program: Program, steps: list[Step]) -> Program:
    """The program with other steps to the same results."""
    result = replace(program, steps=steps, last_use={})
    kept = set(values_in(result.outputs))
    for index, step in enumerate(steps):
        result.last_use |= {value: index for value in inputs_of(step) if value not in kept}
    return result


def summands(step: Call) -> tuple[Any, Any] | None:
    """Both sides of a call that is a plain sum, values or constants."""
    plain = step.kind == "function" and step.target in ADDITIONS and not step.kwargs
    return tuple(step.args) if plain and len(step.args) == 2 else None


def added_value(step: Step | None, value: int) -> int | None:
    """What a step adds to a value, where it does nothing else; the value, not the other, may be written into."""
    sides = summands(step) if isinstance(step, Call) else None
    if sides is None or not isinstance(step, Call) or not all(isinstance(side, Value) for side in sides):
        return None
    left, right = map(int, sides)
    if left == right or value not in (left, right) or (left != value and step.target is operator.iadd):
        return None
    return right if left == value else left


def values_in(argument: Any) -> list[int]:
    """The values that a call's arguments mention."""
    if isinstance(argument, Value):
        return [int(argument)]
    if isinstance(argument, (list, tuple)):
        return [value for entry in argument for value in values_in(entry)]
    if isinstance(argument, dict):
        return [value for entry in argument.values() for value in values_in(entry)]
    if isinstance(argument, slice):
        return values_in((argument.start, argument.stop, argument.step))
    return []


def inputs_of(step: Step) -> list[int]:
    """The values a step takes."""
    if isinstance(step, Stage):
        return [step.input] if step.residual is None else [step.input, step.residual]
    if isinstance(step, Product):
        return [step.left, step.right]
    return values_in(step.args) + values_in(step.kwargs)


def renamed(argument: Any, names: dict[int, int]) -> Any:
    """A step, or the arguments of a call, with other values in the place of some."""
    if isinstance(argument, Stage):
        residual = None if argument.residual is None else names.get(argument.residual, argument.residual)
        return replace(argument, input=names.get(argument.input, argument.input), residual=residual)
    if isinstance(argument, Product):
        left, right = (names.get(value, value) for value in (argument.left, argument.right))
        return Product(left, right, argument.output)
    if isinstance(argument, Call):
        joins = tuple(names.get(value, value) for value in argument.joins)
        args, kwargs = renamed(argument.args, names), renamed(argument.kwargs, names)
        return replace(argument, args=args, kwargs=kwargs, joins=joins)
    values = {value: Value(names.get(value, value)) for value in values_in(argument)}
    return substitute(argument, values)


def modules_of(step: Step) -> list[nn.Module]:
    """The modules whose work a step does, as far as they can be told."""
    if isinstance(step, Stage):
        return list(step.stands_for) or [module for module in (*step.convs, step.norm) if module is not None]
    if isinstance(step, Call):
        target = step.target.module if isinstance(step.target, OnImages) else step.target
        module = target if isinstance(target, nn.Module) else step.linear
        return [] if module is None else [module]
    return []


def substitute(argument: Any, values: Sequence[Any] | Mapping[int, Any]) -> Any:
    """A call's arguments with others in the place of its values."""
    if isinstance(argument, Value):
        return values[argument]
    if isinstance(argument, tuple):
        entries = [substitute(entry, values) for entry in argument]
        return type(argument)(*entries) if hasattr(argument, "_fields") else tuple(entries)
    if isinstance(argument, list):
        return [substitute(entry, values) for entry in argument]
    if isinstance(argument, dict):
        return {key: substitute(entry, values) for key, entry in argument.items()}
    if isinstance(argument, slice):
        return slice(*(substitute(side, values) for side in (argument.start, argument.stop, argument.step)))
    return argument


def run_call(step: Call, values: list[Any]) -> Any:
    """What a call returns."""
    if step.kind == "attribute":
        return getattr(step.target, step.args)
    args, kwargs = substitute(step.args, values), substitute(step.kwargs, values)
    if step.kind == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    if step.resizes:
        return _resizing.run(step.target, args, kwargs)
    return step.target(*args, **kwargs)
