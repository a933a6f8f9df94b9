"""Inference programs of one step, and what torch makes of the same arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dwsep
from dwsep.ops.inference_program import ACTIVATIONS, Home, Kind
from tests import isas
from tests.problems import last

ops = torch.ops.dwsep
FUNCTIONS: dict[str, Any] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


@dataclass
class Step:
    """One step's arguments; weights and biases as torch's convolutions take them."""

    kind: Kind
    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    pointwise: Tensor | None = None
    pointwise_bias: Tensor | None = None
    expansion: Tensor | None = None
    expansion_bias: Tensor | None = None
    operand: Tensor | None = None
    gate: Tensor | None = None
    norm: Tensor | None = None  # scale and shift per channel, and eps
    activations: tuple[str, str, str] = ("none", "none", "none")  # of the result, the inner one, the expansion's
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    bfloat16: bool = False
    packed: list[Tensor] = field(default_factory=list)

    def _rounded(self, operand: Tensor) -> Tensor:
        """What a pointwise product takes, where it takes bfloat16."""
        rounds = self.bfloat16 and dwsep.ops.native_status().isa in isas.BFLOAT16
        return operand.bfloat16().double() if rounds else operand

    def expected(self) -> Tensor:
        """The result in float64, but for what the processor rounds to bfloat16."""
        outer, inner, first = (FUNCTIONS[name] for name in self.activations)
        x = self.x.double()
        if self.kind == Kind.POOL:
            return x.mean((2, 3), keepdim=True)
        if self.kind == Kind.GATE:
            assert self.operand is not None
            return x * self.operand.double()
        if self.norm is not None:
            scale, shift = self.norm[:-1].double().view(2, -1, 1, 1)
            variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            return (x - mean) / (variance + self.norm[-1].double()).sqrt() * scale + shift
        if self.gate is not None:
            x = x * self.gate.double()
        if self.expansion is not None:
            x = first(_conv(self._rounded(x), self._rounded(self.expansion), self.expansion_bias))
        if self.weight is not None:
            top, bottom, left, right = self.pads
            groups = x.shape[1] if self.kind in (Kind.DEPTHWISE, Kind.SEPARABLE) else 1
            x, weight = F.pad(x, (left, right, top, bottom)), self.weight
            if self.kind == Kind.DENSE:
                x, weight = self._rounded(x), self._rounded(weight)
            x = _conv(x, weight, self.bias, stride=self.stride, dilation=self.dilation, groups=groups)
        if self.pointwise is not None:
            x = _conv(self._rounded(inner(x)), self._rounded(self.pointwise), self.pointwise_bias)
        x = outer(x)
        return x if self.operand is None else x + self.operand.double()

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        shape = self.expected().shape
        values = [[*self.x.shape, Home.INPUT, 0, 0], [*shape, Home.OUTPUT, 0, 0]]
        inputs = [last(self.x)]
        if self.operand is not None:
            values.append([*self.operand.shape, Home.INPUT, 1, 0])
            inputs.append(last(self.operand))
        gate = -1
        if self.gate is not None:
            gate = len(values)
            values.append([*self.gate.shape, Home.INPUT, len(inputs), 0])
            inputs.append(last(self.gate))
        places = [-1, 0]
        parts: list[Tensor] = []
        for index, packed in enumerate((self._expansion(), self._weights())):
            if packed is not None:
                places[index] = sum(part.numel() for part in parts)
                parts.append(F.pad(packed, (0, -packed.numel() % 16)))
        names = [ACTIVATIONS.index(name) for name in self.activations]
        kernel = (1, 1) if self.weight is None else tuple(self.weight.shape[2:])
        channels = 1 if self.weight is None else self.weight.shape[0]
        step = [self.kind, 0, 1, -1 if self.operand is None else 2, *names[:2], places[1], channels]
        step += [*kernel, *self.stride, *self.dilation, *self.pads, places[0], names[2], gate, -1, int(self.bfloat16)]
        return {
            "inputs": inputs,
            "weights": torch.cat(parts) if parts else torch.zeros(0),
            "values": torch.tensor(values),
            "steps": torch.tensor([step]),
            "output_sizes": list(shape),
            "workspace": 0,
        }

    def _expansion(self) -> Tensor | None:
        if self.expansion is None:
            return None
        return ops.pack_pointwise_weights(self.expansion, self.expansion_bias, self.bfloat16)

    def _weights(self) -> Tensor | None:
        if self.norm is not None:
            return self.norm
        if self.weight is None:
            if self.pointwise is None:
                return None
            return ops.pack_pointwise_weights(self.pointwise, self.pointwise_bias, self.bfloat16)
        if self.kind == Kind.DENSE:
            patches = self.weight.permute(0, 2, 3, 1).reshape(self.weight.shape[0], -1, 1, 1)
            return ops.pack_pointwise_weights(patches, self.bias, self.bfloat16)
        if self.kind == Kind.DEPTHWISE:
            return ops.pack_depthwise_weights(self.weight, self.bias)
        weights = self.weight, self.pointwise, self.bias, self.pointwise_bias
        channels = self.x.shape[1] if self.expansion is None else self.weight.shape[0]
        return ops.pack_separable_weights(*weights, self.weight.shape[0] // channels, self.bfloat16)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    return F.conv2d(x, weight.double(), None if bias is None else bias.double(), **options)


def draw_step(kind: Kind, rng: Any, draw: Any, activations: tuple[str, ...]) -> Step:
    """A step of this kind, its sizes drawn by ``rng``, its elements by ``draw(*shape)``."""
    batch, height, width = rng.choice((1, 1, 2, 3)), rng.choice((1, 5, 7, 14, 20)), rng.choice((1, 4, 7, 9, 14, 30))
    channels, outputs, wide = (rng.choice((1, 3, 8, 16, 17, 24, 32, 32, 40)) for _ in "iow")
    step = Step(kind, draw(batch, channels, height, width))
    if kind in (Kind.POOL, Kind.GATE):
        step.operand = draw(batch, channels, 1, 1) if kind == Kind.GATE else None
        return step
    if kind == Kind.LAYER_NORM:
        step.norm = torch.cat((draw(2 * channels), torch.tensor([rng.choice((1e-6, 1e-5, 0.5))])))
        return step
    step.activations = (rng.choice(activations), "none", "none")
    if kind == Kind.POINTWISE:
        step.pointwise, step.pointwise_bias = draw(outputs, channels, 1, 1), rng.choice((None, draw(outputs)))
        step.gate = rng.choice((None, draw(batch, channels, 1, 1)))
    elif kind != Kind.ACTIVATION:
        kernel = (rng.choice((1, 2, 3, 5)), rng.choice((1, 3, 3, 4, 5, 7)))
        step.stride, step.dilation = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))), rng.choice(((1, 1), (2, 3)))
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(step.dilation, kernel)]
        sides = [rng.choice((span // 2, span // 2, 0, span - 1)) for span in spans for _ in "lh"]
        for axis, size in enumerate((height, width)):
            missing = spans[axis] - size - sides[2 * axis] - sides[2 * axis + 1]
            sides[2 * axis + 1] += max(0, missing)
        step.pads = tuple(sides)  # type: ignore[assignment]
        if kind == Kind.DENSE:
            step.weight, step.bias = draw(outputs, channels, *kernel), rng.choice((None, draw(outputs)))
        else:
            multiplier = rng.choice((1, 1, 2))
            if rng.random() < 0.6:
                step.expansion, step.expansion_bias = draw(wide, channels, 1, 1), rng.choice((None, draw(wide)))
                channels, multiplier = wide, 1
                step.activations = (step.activations[0], "none", rng.choice(activations))
            inner = channels * multiplier
            step.weight, step.bias = draw(inner, 1, *kernel), rng.choice((None, draw(inner)))
            if kind == Kind.SEPARABLE:
                step.pointwise, step.pointwise_bias = draw(outputs, inner, 1, 1), rng.choice((None, draw(outputs)))
                step.activations = (step.activations[0], rng.choice(activations), step.activations[2])
    if rng.random() < 0.5:
        step.operand = draw(*step.expected().shape)
    return step
