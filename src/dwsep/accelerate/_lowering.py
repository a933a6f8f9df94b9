"""From prepared steps and the shapes of their values to native programs: many steps become one call."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.accelerate._inference_steps import Native, Other, Shapes
from dwsep.ops.inference_program import ACTIVATIONS, GATES, Home, Kind

LINE = 16  # floats of a cache line


@dataclass
class Planned:
    """A step of a plan: what runs, the value it makes, the values it takes, and those nobody takes after it."""

    run: Any
    output: int
    taken: Sequence[int]
    release: tuple[int, ...] = ()
    modules: Sequence[nn.Module] = ()  # whose work it does

    def apply(self, values: list[Any]) -> None:
        """Run it on the values, and put its own among them."""
        values[self.output] = self.run(values)


@dataclass
class _Segment:
    """Consecutive steps which run natively: (step, output), and values that are others under another name."""

    steps: list[tuple[Native, int]] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    aliases: dict[int, int] = field(default_factory=dict)

    def root(self, value: int) -> int:
        return self.aliases.get(value, value)


class NativeSegment:
    """One call of ``dwsep::inference_program`` in the place of many steps."""

    def __init__(
        self, segment: _Segment, shapes: Shapes, weights: Tensor, wanted: Sequence[int], bfloat16: bool = False
    ) -> None:
        self.planned, self.shapes, self.weights = segment.planned, shapes, weights
        made = {output for _, output in segment.steps}
        taken = [value for step, _ in segment.steps for value in step.taken()]
        self.inputs = [value for value in dict.fromkeys(map(segment.root, taken)) if value not in made]
        self.wanted = [(value, segment.root(value)) for value in wanted]
        outputs = list(dict.fromkeys(root for _, root in self.wanted))
        self.positions = [outputs.index(root) for _, root in self.wanted]
        layout = _Layout(segment, shapes, self.inputs, outputs)
        self.values = torch.tensor(layout.rows)
        records = [_record(step, output, segment, layout.index) for step, output in segment.steps]
        rounds = [int(bfloat16 and step.bfloat16) for step, _ in segment.steps]
        self.steps = torch.tensor([[*record, rounded] for record, rounded in zip(records, rounds, strict=True)])
        self.output_sizes = [size for value in outputs for size in _image(shapes[value])]
        self.workspace = layout.workspace
        self.output = -1
        self.release: tuple[int, ...] = ()

    def apply(self, values: list[Any]) -> None:
        """Run it on the values, and put its own among them."""
        inputs = []
        for value in self.inputs:
            x, shape = values[value], self.shapes[value]
            if type(x) is not Tensor or x.shape != shape or x.dtype is not torch.float32:
                self._run_steps(values)
                return
            x = x[:, :, None, None] if x.dim() == 2 else x
            inputs.append(x.contiguous(memory_format=torch.channels_last))
        outputs = torch.ops.dwsep.inference_program(
            inputs, self.weights, self.values, self.steps, self.output_sizes, self.workspace
        )
        for (value, _), position in zip(self.wanted, self.positions):
            out, shape = outputs[position], self.shapes[value]
            values[value] = out if shape is None or len(shape) == 4 else out.flatten(1)

    def _run_steps(self, values: list[Any]) -> None:
        """What a call made of the same input has another shape today."""
        for step in self.planned:
            step.apply(values)


class WholeProgram:
    """A plan that is one native program, from its input to a result of two axes, for float32 inputs of one shape."""

    def __init__(self, segment: NativeSegment) -> None:
        self.operator = torch.ops.dwsep.inference_program.default
        self.arguments = segment.weights, segment.values, segment.steps, segment.output_sizes, segment.workspace

    @staticmethod
    def of(steps: Sequence[Planned | NativeSegment], outputs: Any) -> WholeProgram | None:
        """The steps and their result as one, where they are."""
        segment = steps[0] if len(steps) == 1 else None
        if not isinstance(segment, NativeSegment) or segment.inputs != [0] or len(segment.shapes[0] or ()) != 4:
            return None
        wanted = [value for value, _ in segment.wanted]
        flat = wanted == list(outputs) and len(wanted) == 1 and len(segment.shapes[wanted[0]] or ()) == 2
        return WholeProgram(segment) if flat else None

    def run(self, x: Tensor) -> Tensor:
        """The result (N, C) for an input (N, C, H, W)."""
        outputs = self.operator([x.contiguous(memory_format=torch.channels_last)], *self.arguments)
        return outputs[0].flatten(1)


class _Layout:
    """Where each value lies: the rows of the table, and the floats of the workspace."""

    def __init__(self, segment: _Segment, shapes: Shapes, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.rows: list[list[int]] = []
        self.index: dict[int, int] = {}
        self.workspace = 0
        last_use: dict[int, int] = {}
        for position, (step, _) in enumerate(segment.steps):
            for value in step.taken():
                last_use[segment.root(value)] = position
        for number, value in enumerate(inputs):
            self._add(value, shapes, Home.INPUT, number)
        live: dict[int, tuple[int, int]] = {}  # by value, its floats from begin to end
        for position, (step, output) in enumerate(segment.steps):
            source = segment.root(step.input)
            if output in outputs:
                self._add(output, shapes, Home.OUTPUT, outputs.index(output))
            elif step.in_place and source in live and last_use[source] == position:
                live[output] = live.pop(source)
                self._add(output, shapes, Home.WORKSPACE, live[output][0])
            else:
                live[output] = self._free(live, math.prod(_image(shapes[output])))
                self._add(output, shapes, Home.WORKSPACE, live[output][0])
            live = {value: where for value, where in live.items() if last_use.get(value, position) > position}

    def _add(self, value: int, shapes: Shapes, home: Home, place: int) -> None:
        self.index[value] = len(self.rows)
        self.rows.append([*_image(shapes[value]), home, place])

    def _free(self, live: dict[int, tuple[int, int]], count: int) -> tuple[int, int]:
        """The first gap between what lives that is large enough."""
        size, begin = -(-count // LINE) * LINE, 0
        for used in sorted(live.values()):
            if used[0] - begin >= size:
                break
            begin = max(begin, used[1])
        self.workspace = max(self.workspace, begin + size)
        return begin, begin + size


def _image(shape: Sequence[int] | None) -> tuple[int, ...]:
    assert shape is not None
    return tuple(shape) if len(shape) == 4 else (*shape, 1, 1)


def _record(step: Native, output: int, segment: _Segment, index: dict[int, int]) -> list[int]:
    def place(value: int | None) -> int:
        return -1 if value is None else index[segment.root(value)]

    activations = [ACTIVATIONS.index(name) for name in (step.activation, step.inner_activation)]
    sizes = [*step.kernel_size, *step.stride, *step.dilation, *step.pads]
    record = [step.kind, place(step.input), index[output], place(step.operand), *activations, max(step.weights, 0)]
    expansion = [step.expansion, ACTIVATIONS.index(step.expansion_activation)]
    return [*record, step.inner_channels, *sizes, *expansion, place(step.gate)]


class Lowering:
    """Takes the steps of a plan one after the other, and puts those that can run natively together.

    Args:
        steps: all of the plan's.
        kept: the values that the program returns.
        weights: the plan's packed weights; ``None`` where nothing can run natively.
        x: the shape of the program's input.
        bfloat16: whether pointwise weights were packed so.
    """

    def __init__(
        self,
        steps: Sequence[Planned],
        kept: set[int],
        weights: Tensor | None,
        x: tuple[int, ...],
        bfloat16: bool = False,
    ) -> None:
        self.uses = Counter(value for step in steps for value in step.taken)
        self.uses.update(kept)
        self.weights, self.bfloat16 = weights, bfloat16
        self.shapes: defaultdict[int, tuple[int, ...] | None] = defaultdict(lambda: None, {0: x})
        self.segment = _Segment()
        self.result: list[Planned | NativeSegment] = []

    def run(self, step: Planned, values: list[Any]) -> None:
        """Run a step, or leave it for later, together with those behind it."""
        if self.weights is not None and self._append(step):
            self.segment.planned.append(step)
            return
        self.finish(values)
        self._run_alone(step, values)

    def finish(self, values: list[Any]) -> None:
        """Run what was left for later."""
        segment, self.segment = self.segment, _Segment()
        if len(segment.steps) < 2 or self.weights is None:
            for step in segment.planned:
                self._run_alone(step, values)
            return
        inside = Counter(value for step in segment.planned for value in step.taken)
        wanted = [step.output for step in segment.planned if self.uses[step.output] > inside[step.output]]
        native = NativeSegment(segment, self.shapes, self.weights, wanted, self.bfloat16)
        native.release = tuple(dict.fromkeys(value for step in segment.planned for value in step.release))
        native.apply(values)
        self._add(native, values)

    def _run_alone(self, step: Planned, values: list[Any]) -> None:
        values[step.output] = out = step.run(values)
        plain = type(out) is Tensor and out.dtype is torch.float32 and out.is_cpu
        self.shapes[step.output] = tuple(out.shape) if plain else None
        self._add(step, values)

    def _add(self, step: Planned | NativeSegment, values: list[Any]) -> None:
        self.result.append(step)
        for value in step.release:
            values[value] = None

    def _append(self, step: Planned) -> bool:
        """Add a step to the segment, if it can run natively."""
        run, shapes, segment = step.run, self.shapes, self.segment
        for value in step.taken:
            shape = shapes[value]
            if shape is None or len(shape) not in (2, 4) or min(shape) < 1:
                return False
        if isinstance(run, Other):
            flat = run.flat_shape(shapes)
            if flat is not None:
                root = segment.root(run.x)
                if all(root != output for _, output in segment.steps):
                    return False
                segment.aliases[step.output] = root
                shapes[step.output] = flat
                return True
            if self._gated(run, step.output):
                return True
        native = run.native(shapes)
        if native is None:
            return False
        shapes[step.output] = native.shape
        if not self._expanded(native, step.output) and not self._input_gated(native, step.output):
            segment.steps.append((native, step.output))
        return True

    def _last_for(self, value: int) -> Native | None:
        """The step before, where it makes a value that nothing but the present step takes."""
        if not self.segment.steps:
            return None
        last, made = self.segment.steps[-1]
        return last if made == value and self.uses[made] == 1 else None

    def _gated(self, step: Other, output: int) -> bool:
        """Make a gate's activation the end of the pointwise step whose only taker it is, if it is."""
        last = None if step.call.gate is None else self._last_for(step.x)
        if last is None or last.kind != Kind.POINTWISE or last.activation != "none" or last.operand is not None:
            return False
        self.segment.steps[-1] = last._replace(activation=step.call.gate), output
        self.shapes[output] = last.shape
        return True

    def _expanded(self, step: Native, output: int) -> bool:
        """Make a pointwise step the start of the depthwise or separable one which alone takes its output, if it is."""
        last = self._last_for(step.input) if step.kind in (Kind.DEPTHWISE, Kind.SEPARABLE) else None
        if last is None or last.kind != Kind.POINTWISE or last.shape[1] != step.inner_channels:
            return False
        # An expansion has weights and an activation, and nothing else of what a pointwise step may have.
        if last.operand is not None or last.gate is not None or last.activation in GATES:
            return False
        expansion = {"expansion": last.weights, "expansion_activation": last.activation}
        self.segment.steps[-1] = step._replace(input=last.input, **expansion), output
        return True

    def _input_gated(self, step: Native, output: int) -> bool:
        """Make a product with a gate the way in which the pointwise step loads that alone takes it, if it is."""
        last = self._last_for(step.input) if step.kind == Kind.POINTWISE else None
        if last is None or last.kind != Kind.GATE:
            return False
        self.segment.steps[-1] = step._replace(input=last.input, gate=last.operand), output
        return True
