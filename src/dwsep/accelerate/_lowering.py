"""From prepared steps and the shapes of their values to native programs: many steps become one call."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.accelerate._inference_steps import Channels, Depthwise, Joined, Native, Other, Pointwise
from dwsep.accelerate._native_segment import NativeSegment, Planned, Segment, wanted_values
from dwsep.ops.inference_program import GATES, Kind


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
        self.takers: defaultdict[int, list[Planned]] = defaultdict(list)
        for step in steps:
            for value in step.taken:
                self.takers[value].append(step)
        # Numbers for values which are in native programs alone.
        self.fresh = itertools.count(1 + max([0, *(value for step in steps for value in (step.output, *step.taken))]))
        self.weights, self.bfloat16 = weights, bfloat16
        self.shapes: defaultdict[int, tuple[int, ...] | None] = defaultdict(lambda: None, {0: x})
        self.segment = Segment()
        self.gated: dict[int, tuple[int, int]] = {}  # by part of a product, what is gated and its gate
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
        segment, self.segment = self.segment, Segment()
        self.gated.clear()
        behind: list[Planned] = []
        # Channels which no step of the segment takes are no value of a program.
        while segment.planned and isinstance(segment.planned[-1].run, Channels):
            behind.insert(0, segment.planned.pop())
            segment.parts.pop(behind[0].output, None)
            segment.aliases.pop(behind[0].output, None)
        if len(segment.steps) < 2 or self.weights is None:
            behind = segment.planned + behind
        else:
            self._run_native(segment, self.weights, values)
        for step in behind:
            self._run_alone(step, values)

    def _run_native(self, segment: Segment, weights: Tensor, values: list[Any]) -> None:
        wanted = wanted_values(segment, self.uses)
        native = NativeSegment(segment, self.shapes, weights, wanted, self.bfloat16)
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
        if isinstance(run, Channels):
            return self._cut(run, step.output)
        if isinstance(run, Joined):
            return self._joined(run, step.output)
        if isinstance(run, Other):
            flat = run.flat_shape(shapes)
            if flat is not None:
                return self._name(run.x, step.output, flat)
            if self._gated(run, step.output):
                return True
        native = run.native(shapes)
        if native is None or not self._takes_parts(native):
            return False
        shapes[step.output] = native.shape
        fused = self._expanded, self._input_gated, self._means
        if not any(fuse(native, step.output) for fuse in fused):
            segment.steps.append((native, step.output))
        return True

    def _name(self, value: int, name: int, shape: tuple[int, ...]) -> bool:
        """Have all of a value that the segment makes under another name, too."""
        root = self.segment.root(value)
        if not self.segment.makes(root):
            return False
        self.segment.aliases[name] = root
        self.shapes[name] = shape
        return True

    def _part(self, value: int, first: int, channels: int, number: int | None = None) -> int:
        """A value which is some channels of another, under a number of its own if it has none."""
        number = next(self.fresh) if number is None else number
        shape = self.shapes[value]
        assert shape is not None
        self.segment.parts[number] = value, first
        self.shapes[number] = (shape[0], channels, *shape[2:])
        return number

    def _cut(self, run: Channels, output: int) -> bool:
        """Name some of a value's channels; those of a product are taken with their gates by those who take them."""
        shape = self.shapes[run.x]
        assert shape is not None
        if len(shape) != 4:
            return False
        first, channels = run.bounds(shape[1])
        if channels == shape[1]:
            return self._name(run.x, output, shape)
        if channels < 1:
            return False
        last = self.segment.steps[-1] if self.segment.steps else None
        if last is not None and last[1] == run.x and last[0].kind == Kind.GATE and self._all_take_gates(run.x):
            self.segment.steps.pop()
            gate = last[0].operand
            assert gate is not None
            for other in self.takers[run.x]:
                sizes = other.run.bounds(shape[1])
                self.gated[other.output] = self._part(last[0].input, *sizes), self._part(gate, *sizes)
        self._part(run.x, first, channels, output)
        return True

    def _all_take_gates(self, product: int) -> bool:
        """Whether a product is taken by the pointwise steps of one mixed stage alone, which all run together."""
        takers = self.takers[product]
        mixed = all(isinstance(taker.run, Channels) and taker.run.index is None for taker in takers)
        if len(takers) != self.uses[product] or not mixed:
            return False
        behind = [self._only_taker(taker) for taker in takers]
        if not all(
            step is not None and isinstance(step.run, Pointwise) and step.run.residual is None for step in behind
        ):
            return False
        ends = [self._only_taker(step) for step in behind if step is not None]
        ends = [self._only_taker(end) if end is not None and isinstance(end.run, Depthwise) else end for end in ends]
        first = ends[0]
        return first is not None and isinstance(first.run, Joined) and all(end is first for end in ends)

    def _only_taker(self, step: Planned) -> Planned | None:
        takers = self.takers[step.output]
        return takers[0] if len(takers) == 1 and self.uses[step.output] == 1 else None

    def _takes_parts(self, step: Native) -> bool:
        """Whether what a step takes are whole values, or it takes parts of others, too."""
        parts = [value for value in step.taken() if self.segment.root(value) in self.segment.parts]
        return not parts or self._reads_parts(step, parts)

    def _reads_parts(self, step: Native, parts: Sequence[int]) -> bool:
        """Whether some of what a step takes may be parts of other values."""
        return (step.kind == Kind.POINTWISE and step.operand not in parts) or self._is_single(step)

    def _is_single(self, step: Native) -> bool:
        """Whether it is a depthwise step with an output for each channel, to which nothing is added."""
        shape = self.shapes[step.input]
        single = shape is not None and step.inner_channels == shape[1]
        return step.kind == Kind.DEPTHWISE and step.operand is None and (single or step.expansion >= 0)

    def _joined(self, run: Joined, output: int) -> bool:
        """Let the steps that make a value's parts write them where they belong."""
        segment, shapes = self.segment, self.shapes
        if run.norm is not None or run.activation != "none" or len(set(run.parts)) != len(run.parts):
            return False
        made = {value: number for number, (_, value) in enumerate(segment.steps)}
        if any(part not in made or part in segment.parts for part in run.parts):
            return False
        steps = [segment.steps[made[part]][0] for part in run.parts]
        if not all((step.kind == Kind.POINTWISE and step.operand is None) or self._is_single(step) for step in steps):
            return False
        for step, _ in segment.steps:
            taken = [value for value in step.taken() if segment.root(value) in run.parts]
            if taken and not self._reads_parts(step, taken):
                return False
        shape, *others = (step.shape for step in steps)
        if any((other[0], *other[2:]) != (shape[0], *shape[2:]) for other in others):
            return False
        shape = (shape[0], sum(step.shape[1] for step in steps), *shape[2:])
        if run.residual is not None:
            # Every part adds its own: what is added has to be there before the first.
            first = min(made[part] for part in run.parts)
            late = {value for each, at in segment.steps[first:] for value in map(segment.whole, each.makes(at))}
            adds = all(step.kind == Kind.POINTWISE for step in steps)
            apart = all(self.uses[part] == 1 for part in run.parts)
            if not adds or not apart or shapes[run.residual] != shape or segment.whole(run.residual) in late:
                return False
        shapes[output] = shape
        channel = 0
        for part, step in zip(run.parts, steps):
            size = step.shape[1]
            if run.residual is not None:
                segment.steps[made[part]] = step._replace(operand=self._part(run.residual, channel, size)), part
            self._part(output, channel, size, part)
            segment.joined.add(part)
            channel += size
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
        if self.segment.root(last.input) in self.segment.parts and step.kind == Kind.SEPARABLE:
            return False
        expansion = {"expansion": last.weights, "expansion_activation": last.activation}
        self.segment.steps[-1] = step._replace(input=last.input, **expansion), output
        return True

    def _input_gated(self, step: Native, output: int) -> bool:
        """Make a product with a gate the way in which the pointwise step loads that alone takes it, if it is."""
        if step.kind != Kind.POINTWISE:
            return False
        if step.input in self.gated:
            x, gate = self.gated[step.input]
            self.segment.steps.append((step._replace(input=x, gate=gate), output))
            return True
        last = self._last_for(step.input)
        if last is None or last.kind != Kind.GATE:
            return False
        self.segment.steps[-1] = step._replace(input=last.input, gate=last.operand), output
        return True

    def _means(self, step: Native, output: int) -> bool:
        """Make means the business of the depthwise steps which have just made what they are of, if they are."""
        segment = self.segment
        if step.kind != Kind.POOL:
            return False
        parts = [value for value, (whole, _) in segment.parts.items() if whole == step.input]
        makers = {value: number for number, (_, value) in enumerate(segment.steps)}
        made = [value for value in parts if value in makers] or [step.input]
        first = len(segment.steps) - len(made)
        if first < 0 or sorted(makers.get(value, -1) for value in made) != list(range(first, len(segment.steps))):
            return False
        steps = [segment.steps[makers[value]][0] for value in made]
        if any(maker.means is not None or not self._is_single(maker) for maker in steps):
            return False
        for value in made:
            maker = segment.steps[makers[value]][0]
            means = output
            if value != step.input:
                means = self._part(output, segment.parts[value][1], maker.shape[1])
            segment.steps[makers[value]] = maker._replace(means=means), value
        return True
