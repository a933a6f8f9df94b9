"""Consecutive steps of a plan as one native program: which values it has, where they lie, and its tables."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep.accelerate._inference_steps import Native, Shapes
from dwsep.ops.inference_program import ACTIVATIONS, Home

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


class Place(NamedTuple):
    """Where a value lies: in which whole value's memory, and from which of its channels on.

    What belongs to a joined value's part is taken of a copy, since a change of the whole must not be seen in the part,
    nor one of the part in the whole: ``copied`` is that part and its first channel in the whole, and ``first`` counts
    from there.
    """

    whole: int
    first: int
    copied: tuple[int, int] | None


@dataclass
class Segment:
    """Consecutive steps which run natively: (step, output), and values which are others under another name or some of
    their channels.
    """

    steps: list[tuple[Native, int]] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    aliases: dict[int, int] = field(default_factory=dict)
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)  # by value, whose part it is, from which channel on
    joined: set[int] = field(default_factory=set)  # parts whose values are copied into the whole as far as anyone knows

    def root(self, value: int) -> int:
        """The value under its own name."""
        return self.aliases.get(value, value)

    def whole(self, value: int) -> int:
        """The value whose memory it is in."""
        return self.place(value).whole

    def place(self, value: int) -> Place:
        """Where it lies."""
        value = self.root(value)
        first, copied = 0, None
        while value in self.parts:
            source, channel = self.parts[value]
            if value in self.joined:
                copied = value, channel
            else:
                first += channel
            value = self.root(source)
        return Place(value, first, copied)

    def made(self) -> Iterator[int]:
        """The values that the steps write, parts as such."""
        return itertools.chain.from_iterable(step.makes(output) for step, output in self.steps)

    def makes(self, value: int) -> bool:
        """Whether the steps write all of a value that is no part of another."""
        return any(value == self.whole(each) for each in self.made())


class NativeSegment:
    """One call of ``dwsep::inference_program`` in the place of many steps."""

    def __init__(
        self, segment: Segment, shapes: Shapes, weights: Tensor, wanted: Sequence[int], bfloat16: bool = False
    ) -> None:
        self.planned, self.shapes, self.weights = segment.planned, shapes, weights
        made = {segment.whole(value) for value in segment.made()}
        taken = [value for step, _ in segment.steps for value in step.taken()]
        self.inputs = [value for value in dict.fromkeys(map(segment.whole, taken)) if value not in made]
        self.wanted = list(wanted)
        self.places = [segment.place(value) for value in wanted]
        outputs = list(dict.fromkeys(place.whole for place in self.places if place.whole in made))
        # Of each wanted value the number of the output that it lies in; -1 for one that lies in an input.
        self.positions = [outputs.index(place.whole) if place.whole in made else -1 for place in self.places]
        layout = _Layout(segment, shapes, self.inputs, outputs)
        records = [_record(step, output, layout) for step, output in segment.steps]
        rounds = [int(bfloat16 and step.bfloat16) for step, _ in segment.steps]
        self.values = torch.tensor(layout.rows)
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
        copies: dict[int, Tensor] = {}
        for value, place, position in zip(self.wanted, self.places, self.positions):
            shape, out = self.shapes[value], values[place.whole] if position < 0 else outputs[position]
            assert shape is not None
            if place.copied is not None:
                part, first = place.copied
                if part not in copies:
                    of_part = self.shapes[part]
                    assert of_part is not None
                    copies[part] = out[:, first : first + of_part[1]].clone(memory_format=torch.channels_last)
                out = copies[part]
            if shape[1] != out.shape[1]:
                out = out[:, place.first : place.first + shape[1]]
            values[value] = out if len(shape) == 4 else out.flatten(1)

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
        wanted = segment.wanted
        flat = wanted == list(outputs) and len(wanted) == 1 and len(segment.shapes[wanted[0]] or ()) == 2
        flat = flat and segment.shapes[segment.places[0].whole][:2] == segment.shapes[wanted[0]]  # type: ignore[index]
        return WholeProgram(segment) if flat else None

    def run(self, x: Tensor) -> Tensor:
        """The result (N, C) for an input (N, C, H, W)."""
        outputs = self.operator([x.contiguous(memory_format=torch.channels_last)], *self.arguments)
        return outputs[0].flatten(1)


class _Layout:
    """Where each value lies: the rows of the table, and the floats of the workspace."""

    def __init__(self, segment: Segment, shapes: Shapes, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.segment, self.shapes = segment, shapes
        self.rows: list[list[int]] = []
        self.index: dict[int, int] = {}
        self.workspace = 0
        last_use: dict[int, int] = {}
        for position, (step, output) in enumerate(segment.steps):
            for value in (*step.makes(output), *step.taken()):
                last_use[segment.whole(value)] = position
        for number, value in enumerate(inputs):
            self._add(value, Home.INPUT, number)
        live: dict[int, tuple[int, int]] = {}  # by value, its floats from begin to end
        for position, (step, output) in enumerate(segment.steps):
            source = segment.root(step.input)
            for value in map(segment.whole, step.makes(output)):
                if value in self.index:
                    continue  # one of its parts was made before
                if value in outputs:
                    self._add(value, Home.OUTPUT, outputs.index(value))
                elif step.in_place and value == output and source in live and last_use[source] == position:
                    live[value] = live.pop(source)
                    self._add(value, Home.WORKSPACE, live[value][0])
                else:
                    live[value] = self._free(live, math.prod(_image(shapes[value])))
                    self._add(value, Home.WORKSPACE, live[value][0])
            live = {value: where for value, where in live.items() if last_use[value] > position}

    def row(self, value: int | None) -> int:
        """A value's row in the table; -1 for none."""
        if value is None:
            return -1
        value = self.segment.root(value)
        if value not in self.index:
            whole, first = self.segment.parts[value]
            self._add(value, Home.PART, self.row(whole), first)
        return self.index[value]

    def _add(self, value: int, home: Home, place: int, first: int = 0) -> None:
        self.index[value] = len(self.rows)
        self.rows.append([*_image(self.shapes[value]), home, place, first])

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


def _record(step: Native, output: int, layout: _Layout) -> list[int]:
    activations = [ACTIVATIONS.index(name) for name in (step.activation, step.inner_activation)]
    sizes = [*step.kernel_size, *step.stride, *step.dilation, *step.pads]
    record = [step.kind, layout.row(step.input), layout.row(output), layout.row(step.operand)]
    expansion = [step.expansion, ACTIVATIONS.index(step.expansion_activation)]
    small = [layout.row(step.gate), layout.row(step.means)]
    return [*record, *activations, max(step.weights, 0), step.inner_channels, *sizes, *expansion, *small]


def wanted_values(segment: Segment, uses: Counter[int]) -> list[int]:
    """The values that are taken outside the segment, given how often each is taken at all."""
    inside = Counter(value for step in segment.planned for value in step.taken)
    return [step.output for step in segment.planned if uses[step.output] > inside[step.output]]
