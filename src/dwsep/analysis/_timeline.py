"""Timed runs of a network: what it spends in each of its parts, part by part as the network really runs.

A part is a module without modules inside, a layer of this package as a whole (it runs fused where it can), or a call
or step of an accelerated network. What lies between two parts, sums and reshapes in the forward of some module, is
timed as well: a run's parts and gaps leave nothing of it out but the clocks' own time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.accelerate.stepwise import FusedStep, Inference, Training, replaced, taken_apart, tensors_of, watched
from dwsep.analysis import _graph
from dwsep.analysis._passes import backward
from dwsep.nn._separable import _DepthwiseSeparableConv


@dataclass
class Mark:
    """A part that ran: from when to when in the forward, and its seconds in the backward.

    Attributes:
        name: The module's.
        run: The number of the module's run, among all such.
        number: Of the call or step of an accelerated module; -1 for a module as a whole.
        step: The step that it is.
        entered: When the clock began to look at what came before.
        begin: When the part began.
        end: When it ended.
        left: When the clock was done with it.
        backward: Seconds in the backward.
    """

    name: str
    run: int
    number: int = -1
    step: FusedStep | None = None
    entered: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    left: float = 0.0
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
        return sum(map(self.spent, range(len(self.marks)))) + sum(map(self.gap, range(len(self.marks) + 1)))

    def gap(self, number: int) -> float:
        """Seconds before a mark, or behind the last one, forward and backward."""
        begin = self.marks[number - 1].left if number else self.begin
        end = self.marks[number].entered if number < len(self.marks) else self.end
        return end - begin + self.gaps[number]


def parts_of(model: nn.Module, training: bool) -> dict[str, tuple[nn.Module, Inference | Training | None]]:
    """The modules that are timed as a whole or taken apart, by name: none lies inside another."""
    parts: dict[str, tuple[nn.Module, Inference | Training | None]] = {}
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        whole = isinstance(module, _DepthwiseSeparableConv) or not any(True for _ in module.children())
        apart = taken_apart(module, training)
        if whole or apart is not None:
            parts[name] = module, apart
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
        self.parts = parts_of(model, training)
        self.run = Run()
        self.runs = 0  # of parts
        self.nodes = _graph.Nodes()
        self.charged: Callable[[float], None] | None = None  # with what the backward spends at present
        self.since = 0.0
        tensors = [t for t in arguments if isinstance(t, Tensor)]
        self.waits = any(t.is_cuda for t in tensors)

    @property
    def has_steps(self) -> bool:
        """Whether some part is an accelerated module."""
        return any(apart is not None for _, apart in self.parts.values())

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

    def timed(self, *, steps: bool = False) -> Run:
        """A run with a clock at every part; of accelerated modules at every call, or at every one of the ``steps``."""
        self.run, self.nodes, self.runs = Run(), _graph.Nodes(), 0
        with self._clocks(steps):
            self.run.begin = self.now()
            output = self.model(*self.arguments)
            self.run.end = self.now()
            if self.training:
                self._watch_gap(output)
                self._charge(self._charge_gap(len(self.run.marks)), self.now())
                self._step(output)
                self._charge(None, self.now())
        self.nodes = _graph.Nodes()  # the graph is freed before the next run
        self.run.gaps += [0.0] * (len(self.run.marks) + 1 - len(self.run.gaps))
        return self.run

    def _step(self, output: Any) -> None:
        if self.training:
            for parameter in self.model.parameters():
                parameter.grad = None
            backward(output)

    @contextmanager
    def _clocks(self, steps: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for name, (module, apart) in self.parts.items():
                if apart is None:
                    stack.enter_context(self._hooked(name, module))
                elif steps:
                    stack.enter_context(replaced(module, self._stepwise(name, apart)))
                else:
                    stack.enter_context(self._by_calls(name, module))
            yield

    @contextmanager
    def _hooked(self, name: str, module: nn.Module) -> Iterator[None]:
        # Hooks would take longer than some of the layers.
        before, inner = module.__dict__.get("forward"), module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            self._enter(Mark(name, self.runs), (args, kwargs))
            output = inner(*args, **kwargs)
            self._leave(output)
            return output

        module.__dict__["forward"] = forward
        try:
            yield
        finally:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before

    def _by_calls(self, name: str, module: nn.Module) -> AbstractContextManager[None]:
        def watch(number: int, call: Callable[[], Any]) -> None:
            self.runs += number == 0
            self._watched(Mark(name, self.runs, number), call)

        return watched(module, watch)

    def _stepwise(self, name: str, apart: Inference | Training) -> Callable[[Any], Any]:
        def forward(x: Any) -> Any:
            own = apart.steps(x)
            self.runs += 1

            def watch(number: int, call: Callable[[], Any]) -> None:
                self._watched(Mark(name, self.runs, number, own[number]), call)

            return apart.run_steps(x, watch)

        return forward

    def _watched(self, mark: Mark, call: Callable[[], Any]) -> None:
        self._enter(mark, [])
        result = call()
        self._leave(tensors_of(result) if self.training else None)

    def _enter(self, mark: Mark, arguments: Any) -> None:
        mark.entered = mark.begin = self.now()
        if self.training:
            self._watch_gap(arguments)
            mark.begin = self.now()
        self.run.marks.append(mark)

    def _leave(self, result: Any) -> None:
        mark = self.run.marks[-1]
        mark.end = mark.left = self.now()
        if self.training:
            self._watch(result, self._charge_mark(mark))
            mark.left = self.now()

    def _watch_gap(self, tree: Any) -> None:
        """Times the backward of what ran since the last part."""
        self._watch(tree, self._charge_gap(len(self.run.marks)))

    def _watch(self, tree: Any, charge: Callable[[float], None]) -> None:
        """Has the backward's time charged to somebody from the moment on that one of some nodes runs.

        The backward runs one node at a time: what follows a node, accumulating what it made, is still its own.
        """

        def before() -> None:
            self._charge(charge, self.now())

        for node in self.nodes.new(tree):
            if not _graph.accumulates(node):
                _graph.watch(node, before)

    def _charge(self, charge: Callable[[float], None] | None, now: float) -> None:
        if self.charged is not None:
            self.charged(now - self.since)
        self.charged, self.since = charge, self.now()

    def _charge_mark(self, mark: Mark) -> Callable[[float], None]:
        def charge(seconds: float) -> None:
            mark.backward += seconds

        return charge

    def _charge_gap(self, number: int) -> Callable[[float], None]:
        gaps = self.run.gaps
        gaps += [0.0] * (number + 1 - len(gaps))

        def charge(seconds: float) -> None:
            gaps[number] += seconds

        return charge
