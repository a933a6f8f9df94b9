"""Timed runs of a network: when each of its parts began and ended, part by part as the network really runs.

A part is a module without modules inside, a layer of this package as a whole (it runs fused where it can), or a step of
an accelerated network. What lies between two parts, sums and reshapes in the forward of some module, is timed as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.analysis import _graph
from dwsep.analysis._accelerated import FusedStep, InferenceSteps, TrainingSteps, reading_of, tensors_of
from dwsep.analysis._passes import backward
from dwsep.nn._separable import _DepthwiseSeparableConv

Part = tuple[str, int]  # a module's name, and the number of its step, or -1 for the module as a whole


@dataclass
class Mark:
    """A part that ran: from when to when in the forward, and its seconds in the backward."""

    part: Part
    begin: float
    end: float = 0.0
    backward: float = 0.0


@dataclass
class Run:
    """A timed run. The gap before mark ``i`` has its backward's seconds in ``gaps[i]``; one more follows the last."""

    begin: float = 0.0
    end: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def spent(self, number: int) -> float:
        """Seconds of a mark, forward and backward."""
        mark = self.marks[number]
        return mark.end - mark.begin + mark.backward

    @property
    def total(self) -> float:
        """Seconds of all marks and gaps."""
        return sum(map(self.spent, range(len(self.marks)))) + sum(map(self.gap, range(len(self.gaps))))

    def gap(self, number: int) -> float:
        """Seconds before a mark, or behind the last one, forward and backward."""
        begin = self.marks[number - 1].end if number else self.begin
        end = self.marks[number].begin if number < len(self.marks) else self.end
        return end - begin + self.gaps[number]


def parts_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that are timed as a whole or step by step: none lies inside another."""
    parts: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        whole = isinstance(module, _DepthwiseSeparableConv) or not any(True for _ in module.children())
        if whole or reading_of(module) is not None:
            parts.append((name, module))
            return
        for key, child in module.named_children():
            visit(f"{name}.{key}" if name else key, child)

    visit("", model)
    return parts


class Timeline:
    """Runs a network with a clock at its parts.

    Args:
        model: In the mode that is timed.
        arguments: Positional arguments.
        training: Whether a backward follows the forward.
    """

    def __init__(self, model: nn.Module, arguments: Sequence[Any], training: bool) -> None:
        self.model, self.arguments, self.training = model, arguments, training
        self.parts = parts_of(model)
        self.steps: dict[str, list[FusedStep]] = {}
        self.run = Run()
        self.nodes = _graph.Nodes()
        tensors = [t for t in arguments if isinstance(t, Tensor)]
        self.waits = any(t.is_cuda for t in tensors)

    def now(self) -> float:
        """Seconds, when all that was asked for is done."""
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def plain(self) -> float:
        """Seconds of a run without clocks inside."""
        started = self.now()
        self._step(self.model(*self.arguments))
        return self.now() - started

    def timed(self) -> Run:
        """A run with a clock at every part."""
        self.run, self.nodes = Run(), _graph.Nodes()
        with self._clocks():
            self.run.begin = self.now()
            output = self.model(*self.arguments)
            self.run.end = self.now()
            if self.training:
                self._watch_gap(output)
                self._step(output)
        self.nodes = _graph.Nodes()  # the graph is freed before the next run
        self.run.gaps += [0.0] * (len(self.run.marks) + 1 - len(self.run.gaps))
        return self.run

    def _step(self, output: Any) -> None:
        if self.training:
            for parameter in self.model.parameters():
                parameter.grad = None
            backward(output)

    @contextmanager
    def _clocks(self) -> Iterator[None]:
        undo: list[Callable[[], None]] = []
        try:
            for name, module in self.parts:
                undo.append(self._replace(name, module) or self._hook(name, module))
            yield
        finally:
            for action in undo:
                action()

    def _hook(self, name: str, module: nn.Module) -> Callable[[], None]:
        def enter(_: nn.Module, args: Any) -> None:
            if self.training:
                self._watch_gap(args)
            self.run.marks.append(Mark((name, -1), self.now()))

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            mark = self.run.marks[-1]
            mark.end = self.now()
            if self.training:
                self._watch(output, mark)

        handles = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def _replace(self, name: str, module: nn.Module) -> Callable[[], None] | None:
        """Has an accelerated module run its steps one by one; None where it is none."""
        reading = reading_of(module)
        if reading is None:
            return None
        plan = None if self.training else reading.inference()
        if plan is None and not self.training:
            return None
        forward = module.__dict__["forward"]
        made: dict[tuple[int, ...], Any] = {}

        def stepwise(x: Any) -> Any:
            steps = made.get(tuple(x.shape))
            if steps is None:
                steps = TrainingSteps(reading) if plan is None else InferenceSteps(reading, plan, x)
                made[tuple(x.shape)] = steps
                self.steps[name] = steps.steps
                if plan is not None:
                    self.run.begin = self.now()  # what was prepared is not timed
            return steps(x, timed)

        def timed(number: int, call: Callable[[], Any]) -> Any:
            self.run.marks.append(mark := Mark((name, number), self.now()))
            result = call()
            mark.end = self.now()
            if self.training:
                self._watch(tensors_of(result), mark)
            return result

        module.__dict__["forward"] = stepwise

        def restore() -> None:
            module.__dict__["forward"] = forward

        return restore

    def _watch_gap(self, tree: Any) -> None:
        """Times the backward of what ran since the last part."""
        run, number = self.run, len(self.run.marks)
        run.gaps += [0.0] * (number + 1 - len(run.gaps))
        started = [0.0]

        def before() -> None:
            started[0] = self.now()

        def after() -> None:
            run.gaps[number] += self.now() - started[0]

        for node in self.nodes.new(tree):
            _graph.watch(node, before, after)

    def _watch(self, tree: Any, mark: Mark) -> None:
        """Times the backward of a part."""
        started = [0.0]

        def before() -> None:
            started[0] = self.now()

        def after() -> None:
            mark.backward += self.now() - started[0]

        for node in self.nodes.new(tree):
            _graph.watch(node, before, after)
