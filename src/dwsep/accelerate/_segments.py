"""Stretches of a program whose training runs as one native call in each direction (``dwsep::training_program``).

The same steps as :mod:`dwsep.accelerate._stages` runs one by one, which a network pays for with a node of autograd,
two calls and a page of Python each: a tenth of MobileNetV3's step at batch 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dwsep.accelerate import _modules
from dwsep.accelerate._lowered import Lowered, Shape
from dwsep.accelerate._program import Product, Program, Stage, Step, inputs_of, values_in

_MOST_LOWERINGS = 8


def expand(program: Program) -> list[Step]:
    """A program's steps, with a convolution that no stage runs apart from the norm and the activation behind it."""
    steps: list[Step] = []
    value = program.values
    for step in program.steps:
        if isinstance(step, Stage) and step.conv is not None and not _has_stage(step) and step.norm is not None:
            steps.append(Stage(step.name, step.input, value, conv=step.conv))
            steps.append(replace(step, input=value, conv=None))
            value += 1
        else:
            steps.append(step)
    return steps


def _has_stage(step: Stage) -> bool:
    return step.conv is None or _modules.has_stage(step.conv)


class _Values:
    """Which values are means over images or made of such, (N, C, 1, 1), or, flat, (N, C)."""

    def __init__(self) -> None:
        self.pixels: set[int] = set()
        self.flat: set[int] = set()
        self.attributes: set[int] = set()  # and those made of attributes, which gate nothing

    def may_run(self, step: Step) -> bool:
        """Whether a step may run natively; the steps of a program have to be asked about in their order."""
        if isinstance(step, Stage):
            if step.input in self.pixels and step.residual is None and all(map(_modules.is_pointwise, step.convs)):
                self.pixels.add(step.output)
            return _has_stage(step)
        if isinstance(step, Product):
            return self.attributes.isdisjoint(inputs_of(step))
        taken = inputs_of(step)
        if step.kind == "attribute" or (step.kind == "method" and not self.attributes.isdisjoint(taken)):
            self.attributes.add(step.output)
            return False
        if step.pools is not None:
            (self.pixels if step.pools == "kept" else self.flat).add(step.output)
        elif step.gate is not None:
            if taken[0] in self.pixels:
                self.pixels.add(step.output)
        elif (step.flattens and taken[0] in self.pixels) or (step.linear is not None and taken[0] in self.flat):
            self.flat.add(step.output)
        else:
            return False
        return True


class Segment:
    """Consecutive steps, the values they take from before and those which are taken behind them."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        made = {step.output for step in steps}
        self.inputs = list(dict.fromkeys(v for step in steps for v in inputs_of(step) if v not in made))
        self.outputs: list[int] = []
        self.lowered: dict[Any, Lowered | None] = {}

    def lower(self, shapes: Sequence[Shape]) -> Lowered | None:
        """What runs inputs of these shapes; ``None`` where the steps have to be run one by one."""
        key = tuple(shapes)
        found = self.lowered.get(key)
        if found is not None and found.is_current():
            return found
        if found is None and key in self.lowered:
            return None
        try:
            lowered = Lowered(self, shapes)
        except NotImplementedError:
            lowered = None
        if len(self.lowered) >= _MOST_LOWERINGS:
            self.lowered.clear()
        self.lowered[key] = lowered
        return lowered


@dataclass
class Plan:
    """A program's steps, segments in place of those which can run natively."""

    items: list[Step | Segment]
    values: int
    last_use: dict[int, int]


def plan(program: Program, *, together: bool = True) -> Plan:
    """Put the steps of a program into as few segments as there can be, or, where not ``together``, into none.

    Args:
        program: whose steps.
        together: whether there may be segments.
    """
    items: list[Step | Segment] = []
    run: list[Step] = []
    steps, values = expand(program), _Values()
    for step in [*steps, None]:
        if step is not None and together and values.may_run(step):
            run.append(step)
            continue
        if run:
            items.append(Segment(run) if any(isinstance(one, Stage) for one in run) else run[0])
            items.extend([] if isinstance(items[-1], Segment) else run[1:])
            run = []
        if step is not None:
            items.append(step)
    last_use: dict[int, int] = {}
    kept = set(values_in(program.outputs))
    for index, item in enumerate(items):
        for value in item.inputs if isinstance(item, Segment) else inputs_of(item):
            if value not in kept:
                last_use[value] = index
    for index, item in enumerate(items):
        if isinstance(item, Segment):
            made = [step.output for step in item.steps]
            item.outputs = [value for value in made if value in kept or last_use.get(value, -1) > index]
    values = 1 + max([program.values - 1, *(step.output for step in steps)])
    return Plan(items, values, last_use)
