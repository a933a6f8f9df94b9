"""An accelerated network's forward step by step, so that each fused stage can be timed by itself.

It runs what :func:`dwsep.accelerate_` prepared, step after step on the same values, where the network makes one native
call of many steps: every step of a native program becomes a program of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dwsep.accelerate import _inference, _training
from dwsep.accelerate._forward import AcceleratedForward, Reading
from dwsep.accelerate._inference_steps import Native
from dwsep.accelerate._lowering import Lowering, NativeSegment, Planned, _Segment
from dwsep.accelerate._program import Call, Product, Program, Stage, Step, inputs_of, substitute, values_in
from dwsep.accelerate._stages import Pending
from dwsep.ops._layout import is_channels_last
from dwsep.ops.inference_program import Kind

_LABELS = {
    Kind.DENSE: "dense",
    Kind.DEPTHWISE: "depthwise",
    Kind.POINTWISE: "pointwise",
    Kind.SEPARABLE: "separable",
    Kind.POOL: "pooling",
    Kind.GATE: "gate",
    Kind.ACTIVATION: "activation",
}
Timed = Callable[[int, Callable[[], Any]], Any]  # runs a step, with its number


@dataclass
class FusedStep:
    """A step of an accelerated forward.

    Attributes:
        modules: The modules whose work it does, as far as they can be told.
        label: What it is, "depthwise" or "pointwise + depthwise"; empty where its layers say it.
        native: Whether a native program runs it.
        elements: Values it reads and writes at the least, parameters aside; None where nobody knows.
    """

    modules: list[nn.Module] = field(default_factory=list)
    label: str = ""
    native: bool = False
    elements: int | None = None


def reading_of(module: nn.Module) -> Reading | None:
    """What an accelerated module prepared for its present state; None for every other module."""
    forward = module.__dict__.get("forward")
    return forward.reading() if isinstance(forward, AcceleratedForward) else None


class InferenceSteps:
    """The inference of an accelerated module, for one shape of its input."""

    def __init__(self, reading: Reading, plan: _inference.Plan, x: Tensor) -> None:
        self.plan, self.program = plan, reading.program
        self.keeps = plan.channels_last or is_channels_last(x)
        values: list[Any] = [None] * plan.count
        values[0] = x.contiguous(memory_format=torch.channels_last)
        lowering = _Recorder(plan.steps, plan.kept, plan.weights, tuple(x.shape))
        for step in plan.steps:
            lowering.run(step, values)
        lowering.finish(values)
        self.runs = lowering.fine
        makers = {step.output: step for step in self.program.steps}
        self.steps = [_describe(run, group, lowering.shapes, makers) for run, group in self.runs]

    def __call__(self, x: Tensor, timed: Timed) -> Any:
        """The module's output, each step run by ``timed``."""
        values: list[Any] = [None] * self.plan.count
        values[0] = x.contiguous(memory_format=torch.channels_last)
        for number, (run, group) in enumerate(self.runs):
            if isinstance(run, NativeSegment):
                timed(number, lambda run=run: run(values))
            else:
                values[run.output] = timed(number, lambda run=run: run.run(values))
            for planned in group:
                for value in planned.release:
                    values[value] = None
        return _results(substitute(self.plan.outputs, values), self.plan.spec, self.keeps)


class _Recorder(Lowering):
    """A lowering that also makes a program of every single step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.groups: list[list[Planned]] = []
        self.fine: list[tuple[Planned | NativeSegment, list[Planned]]] = []

    def _append(self, step: Planned) -> bool:
        before = len(self.segment.steps)
        appended = super()._append(step)
        if appended and len(self.segment.steps) > before:
            self.groups.append([step])
        elif appended:
            self.groups[-1].append(step)
        return appended

    def finish(self, values: list[Any]) -> None:
        segment, groups = self.segment, self.groups
        self.groups = []
        super().finish(values)
        if len(segment.steps) < 2 or self.weights is None:
            return  # its steps were run alone
        for (native, output), group in zip(segment.steps, groups, strict=True):
            single = _Segment([(native, output)], group, segment.aliases)
            wanted = [output, *(alias for alias, root in segment.aliases.items() if root == output)]
            run = NativeSegment(single, self.shapes, self.weights, wanted)
            run.step = native  # type: ignore[attr-defined]
            self.fine.append((run, group))

    def _run_alone(self, step: Planned, values: list[Any]) -> None:
        super()._run_alone(step, values)
        self.fine.append((step, [step]))


def _describe(
    run: Planned | NativeSegment, group: list[Planned], shapes: Mapping[int, Any], makers: Mapping[int, Step]
) -> FusedStep:
    modules = [module for planned in group for module in _modules_of(makers[planned.output], planned, makers)]
    if not isinstance(run, NativeSegment):
        values = [*run.taken, run.output]
        known = all(shapes[value] is not None for value in values)
        return FusedStep(modules, "", False, sum(math.prod(shapes[value]) for value in values) if known else None)
    native: Native = run.step  # type: ignore[attr-defined]
    label = _LABELS[native.kind]
    if native.expansion >= 0:
        label = f"pointwise + {label}"
    elements = sum(math.prod(shapes[value]) for value in native.taken()) + math.prod(native.shape)
    return FusedStep(modules, label, True, elements)


def _modules_of(step: Step, planned: Planned | None, makers: Mapping[int, Step]) -> list[nn.Module]:
    if isinstance(step, Stage):
        found: list[nn.Module | None] = [step.conv, step.norm]
        before = makers.get(step.input)
        if planned is not None and isinstance(planned.run, _inference.Separable) and isinstance(before, Stage):
            found = [before.conv, before.norm, *found]
        return [module for module in found if module is not None]
    if isinstance(step, Call):
        module = step.target if isinstance(step.target, nn.Module) else step.linear
        return [] if module is None else [module]
    return []


class TrainingSteps:
    """The forward of a training step of an accelerated module, whose stages keep their outputs raw."""

    def __init__(self, reading: Reading) -> None:
        self.program: Program = reading.program
        self.steps = [FusedStep(_modules_of(step, None, {}), _label(step)) for step in self.program.steps]

    def __call__(self, x: Tensor, timed: Timed) -> Any:
        """The module's output, each step run by ``timed``: as ``dwsep.accelerate._training.run``."""
        program = self.program
        convs = [s.conv for s in program.stages() if s.conv is not None]
        keeps = is_channels_last(x) or any(is_channels_last(conv.weight) for conv in convs)
        values: list[Any] = [None] * program.values
        values[0] = x.contiguous(memory_format=torch.channels_last)
        for index, step in enumerate(program.steps):
            values[step.output] = timed(index, lambda step=step: _training._step(step, values))
            for value in inputs_of(step):
                if program.last_use.get(value) == index:
                    values[value] = None
        for value in values_in(program.outputs):
            values[value] = _training._tensor(values[value])
        return _results(substitute(program.outputs, values), program.output_spec, keeps)


def _label(step: Step) -> str:
    if isinstance(step, Stage) and step.conv is None and step.norm is None:
        return "activation"
    return "gate" if isinstance(step, Product) else ""


def empty_program() -> Callable[[], None]:
    """Makes a call of a native program that computes next to nothing."""
    shape = (1, 16, 1, 1)
    segment = _Segment([(Native(Kind.ACTIVATION, 0, shape), 1)])
    program = NativeSegment(segment, {0: shape, 1: shape}, torch.zeros(16), [1])
    values: list[Any] = [torch.ones(shape), None]
    return lambda: program(values)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a step's result, which may be pending."""
    if isinstance(value, Pending):
        return [leaf for leaf in vars(value).values() if isinstance(leaf, Tensor)]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _results(results: list[Any], spec: Any, keeps: bool) -> Any:
    if not keeps:
        results = [r.contiguous() if isinstance(r, Tensor) and r.dim() == 4 else r for r in results]
    return results[0] if spec.is_leaf() else pytree.tree_unflatten(results, spec)
