"""Layer norms and products over the last axis between two permutations, as ConvNeXt's, read as norms and 1x1
convolutions over the channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.accelerate import _modules
from dwsep.accelerate._program import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    Call,
    OnImages,
    Program,
    Stage,
    Step,
    Value,
    inputs_of,
    renamed,
    sequence_of,
    values_in,
)

_PERMUTATIONS = (torch.permute, "permute")


def straightened(program: Program) -> Program:
    """The program without the permutations around what has a form for images (N, C, H, W)."""
    if not any(isinstance(step, Call) and step.permutes == CHANNELS_LAST for step in program.steps):
        return program
    return _Straightener(program).result()


class LinearConv:
    """The 1x1 convolution that computes at every pixel what a layer does with the last axis, as far as stages look.

    Its weight is a view of the layer's, so that gradients reach that.
    """

    kernel_size = stride = dilation = (1, 1)
    padding = (0, 0)
    padding_mode = "zeros"
    groups = 1

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.in_channels, self.out_channels = linear.in_features, linear.out_features
        self._buffers: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """The layer's weight, (K, C, 1, 1)."""
        return self.linear.weight[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, (K,)."""
        return self.linear.bias

    @property
    def _parameters(self) -> dict[str, Tensor | None]:
        return {"weight": self.weight, "bias": self.bias}


class _Straightener:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.count = program.values
        self.images: dict[int, int] = {}  # by value (N, H, W, C), the one which is the same permuted to (N, C, H, W)
        self.names: dict[int, int] = {}  # by value, the one which stands for it now
        self.made: set[int] = set()  # those of the former which were made after all

    def result(self) -> Program:
        for step in self.program.steps:
            step = renamed(step, self.names)
            if not self._straighten(step):
                self._ask_for(inputs_of(step))
                self.steps.append(step)
        outputs = [renamed(output, self.names) for output in self.program.outputs]
        self._ask_for(values_in(outputs))
        return _together(sequence_of(replace(self.program, outputs=outputs, values=self.count), self.steps))

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _ask_for(self, values: list[int]) -> None:
        """Make the values which a step takes as they were."""
        for value in values:
            if value in self.images and value not in self.made:
                self.made.add(value)
                args = Value(self.images[value]), *CHANNELS_LAST
                self.steps.append(Call("method", "permute", args, {}, value, permutes=CHANNELS_LAST))

    def _straighten(self, step: Step) -> bool:
        """Replace a step, if it has another form."""
        if isinstance(step, Stage):
            return step.is_elementwise and self._elementwise(step)
        if not isinstance(step, Call) or not step.args or not isinstance(step.args[0], Value):
            return False
        source = int(step.args[0])
        if step.permutes == CHANNELS_LAST and source not in self.images:
            self.images[step.output] = source
            return True
        image = self.images.get(source)
        if image is None:
            return False
        if step.permutes == CHANNELS_FIRST:
            self.names[step.output] = image
        elif step.last_norm is not None or _normalises_responses(step):
            norm = Call("function", OnImages(step.target), (Value(image),), {}, self._new())
            norm.layer_norm = step.last_norm
            self.images[step.output] = norm.output
            self.steps.append(norm)
        elif step.linear is not None:
            conv: Any = LinearConv(step.linear)
            stage = Stage("", image, self._new(), conv=conv, stands_for=(step.linear,))
            self.images[step.output] = stage.output
            self.steps.append(stage)
        else:
            return False
        return True

    def _elementwise(self, step: Stage) -> bool:
        taken = inputs_of(step)
        if any(value not in self.images for value in taken):
            return False
        image, *others = (self.images[value] for value in taken)
        self.images[step.output] = self._new()
        residual = others[0] if others else None
        self.steps.append(replace(step, input=image, residual=residual, output=self.images[step.output]))
        return True


def _together(program: Program) -> Program:
    """The program with an activation as the end of the convolution right before it that it alone takes."""
    users = program.users()
    steps: list[Step] = []
    for step in program.steps:
        last = steps[-1] if steps else None
        if (
            isinstance(step, Stage)
            and isinstance(last, Stage)
            and last.output == step.input
            and users[step.input] == 1
            and step.is_elementwise
            and last.stands_for
            and last.is_open
        ):
            steps[-1] = replace(last, activation=step.activation, residual=step.residual, output=step.output)
        else:
            steps.append(step)
    return sequence_of(program, steps)


def _normalises_responses(step: Call) -> bool:
    known = _modules.foreign_name(step.target) == ("timm.layers.grn", "GlobalResponseNorm")
    return known and step.kind == "module" and step.target.channel_dim == -1 and len(step.args) == 1


def dims_of(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """The axes in the order in which a call puts those of its four-dimensional argument, where that is all it does."""
    if isinstance(target, nn.Module):
        foreign = _modules.foreign_name(target) == ("torchvision.ops.misc", "Permute")
        dims: Any = target.dims if foreign and len(args) == 1 else None
    elif target in _PERMUTATIONS and not kwargs and len(args) > 1:
        dims = args[1] if len(args) == 2 else args[1:]
    else:
        return None
    known = isinstance(dims, (list, tuple)) and len(dims) == 4 and all(type(axis) is int for axis in dims)
    return tuple(axis % 4 for axis in dims) if known else None
