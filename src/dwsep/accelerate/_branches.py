"""Parallel linear branches as one convolution, for inference: convolutions and norms of one value, and their sum.

MobileOne, RepViT, RepVGG and GhostNets train several of them side by side and are rewritten by hand for inference
(structural re-parameterization, Ding et al. 2021, https://arxiv.org/abs/2101.03697); here the weights are added up when
a plan is made, and the modules stay.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dwsep.accelerate import _folding, _modules
from dwsep.accelerate._program import (
    Call,
    Program,
    Stage,
    Step,
    Value,
    added_value,
    modules_of,
    sequence_of,
    summands,
)


@dataclass(frozen=True)
class _Tree:
    """A value as a linear map of another, its base: a norm or a convolution of it, the base itself, or a sum."""

    base: int
    members: frozenset[int] = frozenset()  # positions of the steps that compute it
    conv: Stage | None = None  # with its norm
    norm: nn.BatchNorm2d | None = None  # of the first of the parts
    parts: tuple[_Tree, ...] = ()

    def convs(self) -> list[nn.Conv2d]:
        """The convolutions in it."""
        own = [] if self.conv is None or self.conv.conv is None else [self.conv.conv]
        return own + [conv for part in self.parts for conv in part.convs()]


def merged(program: Program) -> Program:
    """The program with parallel branches, and the activation or the sum behind them, as one stage each."""
    finder = _Finder(program)
    steps: list[Step | None] = list(program.steps)
    for index in reversed(range(len(steps))):
        step = steps[index]
        tree = None if step is None else finder.tree(step.output)
        residual: int | None = None
        if tree is None and isinstance(step, Stage) and step.residual is not None:
            tree, residual = finder.own_tree(index, step), step.residual
        if tree is None or len(tree.members) < 2 or not finder.may_move(tree):
            continue
        stage = _stage(tree, program)
        if stage is None:
            continue
        members, last = set(tree.members), index
        stage.output = program.steps[index].output
        behind = finder.only_taker(stage.output)
        stage.residual = residual
        after = None if behind is None or behind != last + 1 or residual is not None else steps[behind]
        if after is not None and behind is not None:
            stage.residual = added_value(after, stage.output)
            if isinstance(after, Stage) and after.is_elementwise and after.residual is None:
                stage.activation = after.activation
            if stage.activation != "none" or stage.residual is not None:
                stage.output = after.output
                members.add(behind)
                last = behind
        for member in members:
            steps[member] = None
        steps[last] = stage
    if steps == program.steps:
        return program
    return sequence_of(program, [step for step in steps if step is not None])


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.users = program.users()
        self.producers = {step.output: index for index, step in enumerate(program.steps)}
        self.takers = program.takers()
        self.known: dict[int, _Tree | None] = {}

    def only_taker(self, value: int) -> int | None:
        """The step that alone takes a value."""
        return self.takers[value][0] if self.users[value] == 1 and self.takers[value] else None

    def may_move(self, tree: _Tree) -> bool:
        """Whether nothing between a tree's steps may write into what they take."""
        between = set(range(min(tree.members), max(tree.members))) - tree.members
        return not any(isinstance(self.program.steps[index], Call) for index in between)

    def tree(self, value: int) -> _Tree | None:
        """A value as a linear map of another, if it is made by one."""
        if value not in self.known:
            self.known[value] = None
            index = self.producers.get(value)
            self.known[value] = None if index is None else self._tree_of(index, self.program.steps[index])
        return self.known[value]

    def _tree_of(self, index: int, step: Step) -> _Tree | None:
        if isinstance(step, Call):
            return self._of_call(frozenset((index,)), step)
        if not isinstance(step, Stage):
            return None
        result = self.own_tree(index, step)
        if result is None or step.residual is None:
            return result
        for other in self._sides(step.residual):
            if other.base == result.base:
                return _Tree(result.base, result.members | other.members, parts=(result, other))
        return None

    def own_tree(self, index: int, step: Stage) -> _Tree | None:
        """What a stage makes before its sum."""
        own = frozenset((index,))
        if step.activation != "none" or step.mixed or not _folding.folds(step.norm):
            return None
        if step.conv is not None:
            if not _is_plain(step.conv):
                return None
            return _Tree(step.input, own, conv=replace(step, residual=None))
        if step.norm is None:
            return None
        inner = self.tree(step.input) if self.users[step.input] == 1 else None
        inner = inner or _Tree(step.input)
        return _Tree(inner.base, own | inner.members, norm=step.norm, parts=(inner,))

    def _of_call(self, own: frozenset[int], step: Call) -> _Tree | None:
        sides = summands(step)
        if sides is None:
            return None
        left, right = sides
        values = [side for side in sides if isinstance(side, Value)]
        if len(values) == 1 and any(type(side) is int and side == 0 for side in sides):
            inner = self._sides(values[0])[0]
            return replace(inner, members=inner.members | own)
        if len(values) != 2 or left == right:
            return None
        if step.target is operator.iadd and self.tree(left) is None:
            return None  # written into what others may see
        for first in self._sides(left):
            for second in self._sides(right):
                if first.base == second.base and (first.members or second.members):
                    if step.target is operator.iadd and not first.members:
                        continue
                    return _Tree(first.base, first.members | second.members | own, parts=(first, second))
        return None

    def _sides(self, value: int) -> list[_Tree]:
        """What a value may be in a sum: what it is made of, if nobody else takes it, or itself."""
        tree = self.tree(value) if self.users[value] == 1 else None
        return [_Tree(value)] if tree is None else [tree, _Tree(value)]


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution's taps lie in the same places whatever its input's size, and it is dense or depthwise."""
    if not isinstance(conv, nn.Conv2d) or not (_modules.is_depthwise(conv) or conv.groups == 1):
        return False
    padding = _modules.geometry_of(conv).padding
    alike = conv.groups == 1 or conv.out_channels == conv.in_channels
    return alike and padding is not None and all(low == high for low, high in padding)


def _stage(tree: _Tree, program: Program) -> Stage | None:
    """A tree as one convolution; None where its parts do not fit together."""
    convs = tree.convs()
    if not convs:
        return None
    widest = max(convs, key=lambda conv: conv.kernel_size[0] * conv.kernel_size[1])
    form = (widest.in_channels, widest.out_channels, widest.groups, widest.stride)
    if any((conv.in_channels, conv.out_channels, conv.groups, conv.stride) != form for conv in convs):
        return None
    size = (widest.out_channels, widest.in_channels // widest.groups, *widest.kernel_size)
    weight = torch.zeros(size, dtype=torch.float64)
    bias = torch.zeros(widest.out_channels, dtype=torch.float64)
    if not _add(tree, widest, weight, bias, torch.ones_like(bias)):
        return None
    padding = [low for low, _ in _modules.geometry_of(widest).padding or ()]
    conv = nn.Conv2d(
        widest.in_channels,
        widest.out_channels,
        widest.kernel_size,  # type: ignore[arg-type]
        widest.stride,  # type: ignore[arg-type]
        tuple(padding),  # type: ignore[arg-type]
        widest.dilation,  # type: ignore[arg-type]
        widest.groups,
        device="meta",
    )
    conv.weight, conv.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    steps = [program.steps[index] for index in sorted(tree.members)]
    modules = tuple(dict.fromkeys(module for step in steps for module in modules_of(step)))
    name = next(step.name for step in steps if isinstance(step, Stage))
    return Stage(name, tree.base, conv=conv, stands_for=modules)


def _add(tree: _Tree, widest: nn.Conv2d, weight: Tensor, bias: Tensor, scale: Tensor) -> bool:
    """Add a tree's weights and biases, times a scale per channel; False where one of its taps has no place."""
    if tree.norm is not None:
        factor, shift = _folding.affine(tree.norm)
        if len(factor) != len(scale):
            return False
        bias += shift * scale
        return _add(tree.parts[0], widest, weight, bias, scale * factor)
    if tree.parts:
        return all(_add(part, widest, weight, bias, scale) for part in tree.parts)
    conv = None if tree.conv is None else tree.conv.conv
    places = _places(conv, widest)
    if places is None:
        return False
    if tree.conv is None:
        channels = torch.arange(len(scale))
        row, column = places[0][0], places[1][0]
        weight[channels, 0 if widest.groups > 1 else channels, row, column] += scale
        return True
    own, shift = _folding.folded(tree.conv)
    rows, columns = (torch.tensor(place) for place in places)
    weight[:, :, rows[:, None], columns] += own * scale.view(-1, 1, 1, 1)
    if shift is not None:
        bias += shift * scale
    return True


def _places(conv: nn.Conv2d | None, widest: nn.Conv2d) -> list[Sequence[int]] | None:
    """By axis, among which of the widest convolution's taps those of another fall, or the pixel itself for none."""
    if conv is None and (widest.in_channels != widest.out_channels or any(step != 1 for step in widest.stride)):
        return None
    outer = _modules.geometry_of(widest)
    found: list[Sequence[int]] = []
    for axis in range(2):
        size, dilation, padding = 1, 1, (0, 0)
        if conv is not None:
            geometry = _modules.geometry_of(conv)
            assert geometry.padding is not None
            size, dilation, padding = geometry.kernel_size[axis], geometry.dilation[axis], geometry.padding[axis]
        assert outer.padding is not None
        low, high = outer.padding[axis]
        step, taps = outer.dilation[axis], outer.kernel_size[axis]
        offsets = [low - padding[0] + tap * dilation for tap in range(size)]
        ends_alike = low + high - step * (taps - 1) == sum(padding) - dilation * (size - 1)
        if not ends_alike or any(offset % step or not 0 <= offset // step < taps for offset in offsets):
            return None
        found.append([offset // step for offset in offsets])
    return found
