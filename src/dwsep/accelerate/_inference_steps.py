"""A program's steps in inference: what runs each alone, and what each is to the native program."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dwsep.accelerate import _folding, _modules
from dwsep.accelerate._program import Call, Product, Stage, Value, modules_of, run_call, summands, values_in
from dwsep.kernels.activations import FORWARD
from dwsep.ops.inference_program import Kind

aten = torch.ops.aten
# In place where aten has it: the tensor is a convolution's result that nobody else has seen.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "relu6": lambda x: aten.hardtanh_(x, 0.0, 6.0),
    "silu": lambda x: aten.silu_(x),
    "hardswish": lambda x: aten.hardswish_(x),
    "gelu": lambda x: aten.gelu_(x),
}
# Fewer input channels make patches of them cost more than their products in bfloat16 save.
_FEW_CHANNELS = 16
# Beyond so many floats of weights, which every row of the output reads anew, torch's convolution is the faster.
_MOST_DENSE_WEIGHTS = 1 << 16

Shape = tuple[int, ...]
Shapes = Mapping[int, Shape | None]


class Native(NamedTuple):
    """A step of a native program, for inputs of known shapes; (N, C) is (N, C, 1, 1) there."""

    kind: Kind
    input: int
    shape: Shape  # of the output
    operand: int | None = None
    activation: str = "none"
    inner_activation: str = "none"
    inner_channels: int = 1
    kernel_size: Sequence[int] = (1, 1)
    stride: Sequence[int] = (1, 1)
    dilation: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)
    weights: int = -1  # place among the plan's weights
    in_place: bool = False  # whether the output may take the input's memory
    expansion: int = -1  # place of the weights of a 1x1 convolution before a depthwise or separable one
    expansion_activation: str = "none"
    gate: int | None = None  # the value whose (N, C) factors a pointwise step's input is multiplied with
    means: int | None = None  # the value of a depthwise step's means over H and W
    bfloat16: bool = True  # whether its weights are packed so in a network of bfloat16

    def taken(self) -> list[int]:
        """The values it reads."""
        return [value for value in (self.input, self.operand, self.gate) if value is not None]

    def makes(self, output: int) -> list[int]:
        """The values it writes, one of them its output."""
        return [output] if self.means is None else [output, self.means]


class Step:
    """A step that runs on values, and may run in a native program."""

    packed: Tensor | None = None
    place: int = -1

    def __call__(self, values: list[Any]) -> Any:
        raise NotImplementedError

    def native(self, shapes: Shapes) -> Native | None:
        """The step of a native program for values of these shapes, if there is one; a shape is that of a tensor."""
        return None


def _add(out: Tensor, residual: Tensor) -> Tensor:
    """The sum, in place of ``out`` where the shapes agree as eager's broadcasting allows."""
    return out.add_(residual) if out.shape == residual.shape else out + residual


def _pads(geometry: Any, spatial: Any) -> list[int]:
    return [side for pair in geometry.pads(spatial) for side in pair]


def _rounded(weight: Tensor, bfloat16: bool) -> Tensor:
    """A pointwise weight as a network of bfloat16 has it, whose products take it so on every processor."""
    return weight.bfloat16().float() if bfloat16 else weight


class Pointwise(Step):
    """A 1x1 convolution with its norm folded, activation and sum in the kernel; or some of its output's channels."""

    def __init__(self, stage: Stage, bfloat16: bool = False, channels: slice = slice(None)) -> None:
        assert stage.conv is not None
        self.x, self.residual, self.activation, self.output = (
            stage.input,
            stage.residual,
            stage.activation,
            stage.output,
        )
        weight, bias = _folding.fold(stage)
        weight, bias = weight[channels], None if bias is None else bias[channels]
        (self.channels, self.in_channels), self.bfloat16 = weight.shape[:2], bfloat16
        self.packed = torch.ops.dwsep.pack_pointwise_weights(_rounded(weight, bfloat16), bias, bfloat16)

    def __call__(self, values: list[Any]) -> Tensor:
        x = values[self.x]
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            got = tuple(x.shape)
            raise RuntimeError(f"a 1x1 convolution expects {self.in_channels} channels, got an input of shape {got}")
        residual = None if self.residual is None else values[self.residual]
        # What broadcasts is left to torch.
        fits = residual is None or residual.shape == (x.shape[0], self.channels, *x.shape[2:])
        out = torch.ops.dwsep.pointwise_conv_packed(
            x, self.packed, self.channels, self.activation, residual if fits else None, self.bfloat16
        )
        return out if fits or residual is None else _add(out, residual)

    def native(self, shapes: Shapes) -> Native | None:
        x = shapes[self.x]
        if x is None or len(x) != 4 or x[1] != self.in_channels:
            return None
        step = Native(Kind.POINTWISE, self.x, (x[0], self.channels, *x[2:]), weights=self.place)
        return _with_sum(step, self.residual, self.activation, shapes)


class Dense(Step):
    """Any convolution that no kernel of ours runs alone: torch's, with the norm folded."""

    def __init__(self, stage: Stage, native: bool, bfloat16: bool = False) -> None:
        conv = stage.conv
        assert conv is not None
        self.x, self.residual = stage.input, stage.residual
        self.activation, self.bfloat16, self.rounds = stage.activation, False, False
        weight, self.bias = _folding.fold(stage)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.geometry = _modules.geometry_of(conv)
        self.in_channels, self.groups = conv.in_channels, conv.groups
        padding = self.geometry.padding
        symmetric = padding is not None and all(low == high for low, high in padding)
        self.padding = [low for low, _ in padding] if symmetric and padding is not None else None
        # Patches that share no pixels are copied once, and multiplied as the pointwise steps' pixels are.
        sizes = zip(self.geometry.kernel_size, self.geometry.stride, self.geometry.dilation)
        apart = self.padding == [0, 0] and all(size <= step and (size == 1 or gap == 1) for size, step, gap in sizes)
        if native and conv.groups == 1 and (apart or weight.numel() <= _MOST_DENSE_WEIGHTS):
            self.bfloat16 = bfloat16 and conv.in_channels >= _FEW_CHANNELS
            patches = _rounded(weight, self.bfloat16).permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1)
            self.packed = torch.ops.dwsep.pack_pointwise_weights(patches, self.bias, self.bfloat16)
        elif bfloat16:
            self.weight, self.rounds = self.weight.bfloat16(), True
            self.bias = None if self.bias is None else self.bias.bfloat16()

    def __call__(self, values: list[Any]) -> Tensor:
        x, padding, g = values[self.x], self.padding, self.geometry
        if padding is None:
            (top, bottom), (left, right) = g.pads(x.shape[2:])
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        x = x.bfloat16() if self.rounds else x
        out = F.conv2d(x, self.weight, self.bias, g.stride, padding, g.dilation, self.groups).float()
        out = _IN_PLACE[self.activation](out)
        return out if self.residual is None else _add(out, values[self.residual])

    def native(self, shapes: Shapes) -> Native | None:
        if self.packed is None:
            return None
        return _convolution(Kind.DENSE, self, self.weight.shape[0], self.activation, shapes, bfloat16=self.bfloat16)


class Depthwise(Step):
    """A depthwise convolution with its norm folded and its activation in the kernel."""

    def __init__(self, stage: Stage, native: bool) -> None:
        assert stage.conv is not None
        self.x, self.residual, self.activation, self.output = (
            stage.input,
            stage.residual,
            stage.activation,
            stage.output,
        )
        self.weight, self.bias = _folding.fold(stage)
        self.geometry, self.in_channels = _modules.geometry_of(stage.conv), stage.conv.in_channels
        self.pads = None if self.geometry.padding is None else _pads(self.geometry, ())
        if native:
            self.packed = torch.ops.dwsep.pack_depthwise_weights(self.weight, self.bias)

    def __call__(self, values: list[Any]) -> Tensor:
        x, g = values[self.x], self.geometry
        pads = _pads(g, x.shape[2:]) if self.pads is None else self.pads
        out = torch.ops.dwsep.depthwise_conv(x, self.weight, self.bias, g.stride, pads, g.dilation, self.activation)
        return out if self.residual is None else _add(out, values[self.residual])

    def native(self, shapes: Shapes) -> Native | None:
        if self.packed is None:
            return None
        channels = self.weight.shape[0]
        return _convolution(Kind.DEPTHWISE, self, channels, self.activation, shapes, inner_channels=channels)


class Separable(Step):
    """A depthwise stage whose output only a pointwise stage takes: one call, the tensor between stays in the cache."""

    def __init__(self, depthwise: Stage, pointwise: Stage, bfloat16: bool = False) -> None:
        assert depthwise.conv is not None
        assert pointwise.conv is not None
        first, second = _folding.fold(depthwise), _folding.fold(pointwise)
        weights = first[0], _rounded(second[0], bfloat16)
        multiplier = depthwise.conv.out_channels // depthwise.conv.in_channels
        self.packed = torch.ops.dwsep.pack_separable_weights(*weights, first[1], second[1], multiplier, bfloat16)
        self.channels, self.bfloat16 = (first[0].shape[0], second[0].shape[0]), bfloat16
        self.geometry, self.in_channels = _modules.geometry_of(depthwise.conv), depthwise.conv.in_channels
        self.pads = None if self.geometry.padding is None else _pads(self.geometry, ())
        own_input = pointwise.residual == depthwise.input and self.channels[1] == depthwise.conv.in_channels
        self.own_input = own_input and set(self.geometry.stride) == {1}
        self.activations = depthwise.activation, pointwise.activation
        self.x, self.residual = depthwise.input, pointwise.residual

    def __call__(self, values: list[Any]) -> Tensor:
        x, g = values[self.x], self.geometry
        pads = _pads(g, x.shape[2:]) if self.pads is None else self.pads
        residual = "input" if self.own_input else "none"
        sizes = *self.channels, g.kernel_size, g.stride, pads, g.dilation
        out = torch.ops.dwsep.separable_conv_packed(x, self.packed, *sizes, *self.activations, residual, self.bfloat16)
        return out if self.residual is None or self.own_input else _add(out, values[self.residual])

    def native(self, shapes: Shapes) -> Native | None:
        inner, outer = self.activations
        options = {"inner_activation": inner, "inner_channels": self.channels[0]}
        return _convolution(Kind.SEPARABLE, self, self.channels[1], outer, shapes, **options)


def _convolution(
    kind: Kind, owner: Dense | Depthwise | Separable, channels: int, activation: str, shapes: Shapes, **options: Any
) -> Native | None:
    """A convolution's step for the input's size."""
    x, g = shapes[owner.x], owner.geometry
    if x is None or len(x) != 4 or x[1] != owner.in_channels:
        return None
    try:
        shape = (x[0], channels, *g.output_size(x[2:]))
    except ValueError:  # torch says what is wrong with the input
        return None
    pads = _pads(g, x[2:])
    sizes = {"kernel_size": g.kernel_size, "stride": g.stride, "dilation": g.dilation, "pads": pads}
    step = Native(kind, owner.x, shape, weights=owner.place, **sizes, **options)
    return _with_sum(step, owner.residual, activation, shapes)


def _with_sum(step: Native, residual: int | None, activation: str, shapes: Shapes) -> Native | None:
    """A step with the activation at its end and the sum behind it, where that broadcasts nothing."""
    if residual is not None and shapes[residual] != step.shape:
        return None
    return step._replace(operand=residual, activation=activation)


class Multiplication(Step):
    """A product, in place where the tensor is a stage's own and nobody takes it afterwards."""

    def __init__(self, product: Product, own: bool) -> None:
        self.left, self.right, self.own = product.left, product.right, own

    def __call__(self, values: list[Any]) -> Tensor:
        x, gate = values[self.left], values[self.right]
        gates = isinstance(gate, Tensor) and isinstance(x, Tensor) and _gates(gate.shape, x.shape)
        return x.mul_(gate) if gates and self.own else x * gate

    def native(self, shapes: Shapes) -> Native | None:
        x, gate = shapes[self.left], shapes[self.right]
        if x is None or gate is None or not _gates(gate, x):
            return None
        return Native(Kind.GATE, self.left, x, self.right, in_place=self.own)


def _gates(gate: Shape, x: Shape) -> bool:
    """Whether a tensor's shape is that of factors for the channels of another's."""
    return len(x) == 4 and tuple(gate) == (*x[:2], 1, 1)


class Unfolded(Step):
    """A stage whose norm cannot be folded, or which is a norm or an activation alone."""

    def __init__(self, stage: Stage) -> None:
        self.x, self.residual = stage.input, stage.residual
        self.conv, self.norm, self.activation = stage.conv, stage.norm, stage.activation

    def __call__(self, values: list[Any]) -> Tensor:
        x = values[self.x]
        x = x if self.conv is None else self.conv(x)
        x = FORWARD[self.activation](x if self.norm is None else plain_norm(self.norm, x))
        return x if self.residual is None else x + values[self.residual]

    def native(self, shapes: Shapes) -> Native | None:
        x = shapes[self.x]
        if self.conv is not None or self.norm is not None or x is None:
            return None
        return _with_sum(Native(Kind.ACTIVATION, self.x, x), self.residual, self.activation, shapes)


class Channels(Step):
    """Some consecutive channels of a value: ``index`` is what a call takes them by, None within a mixed stage."""

    def __init__(self, x: int, channels: slice, index: tuple[Any, ...] | None = None) -> None:
        self.x, self.channels, self.index = x, channels, index

    def bounds(self, channels: int) -> tuple[int, int]:
        """The first channel, and how many, of a value which has so many."""
        first, end, _ = self.channels.indices(channels)
        return first, end - first

    def __call__(self, values: list[Any]) -> Tensor:
        return values[self.x][self.index or (slice(None), self.channels)]


_NOTHING = Stage("", -1)


class Joined(Step):
    """Values one behind the other along the channels, and what the stage they belong to, if any, does with them."""

    def __init__(self, parts: Sequence[int], rest: Stage = _NOTHING) -> None:
        self.parts, self.residual = parts, rest.residual
        self.norm, self.activation = rest.norm, rest.activation

    def __call__(self, values: list[Any]) -> Tensor:
        x = torch.cat([values[part] for part in self.parts], 1)
        x = FORWARD[self.activation](x if self.norm is None else plain_norm(self.norm, x))
        return x if self.residual is None else _add(x, values[self.residual])


class Other(Step):
    """A call, as the forward had it; a module with tensors of bfloat16 takes and gives values of its own kind."""

    def __init__(self, call: Call, native: bool, bfloat16: bool = False) -> None:
        self.call = call
        self.rounds = bfloat16 and call.kind != "attribute" and any(map(_holds_bfloat16, modules_of(call)))
        self.x = int(call.args[0]) if call.args and isinstance(call.args[0], Value) else -1
        sides = None if call.target is operator.iadd else summands(call)
        both = sides is not None and all(isinstance(side, Value) for side in sides)
        self.sides = tuple(map(int, sides)) if both and sides is not None else None
        self.linear = call.linear if native else None
        if self.linear is not None:
            weight, bias = self.linear.weight, self.linear.bias
            bias = None if bias is None else bias.detach().float()
            weight = _rounded(weight.detach().float(), bfloat16)[:, :, None, None]
            self.packed = torch.ops.dwsep.pack_pointwise_weights(weight, bias, bfloat16)

        self.norm = self.call.layer_norm if native and not self.rounds and is_float_norm(call.layer_norm) else None
        if self.norm is not None:
            channels = self.norm.normalized_shape[0]
            weight = torch.ones(channels) if self.norm.weight is None else self.norm.weight.detach()
            bias = torch.zeros(channels) if self.norm.bias is None else self.norm.bias.detach()
            self.packed = torch.cat((weight, bias, torch.tensor([self.norm.eps])))

    def __call__(self, values: list[Any]) -> Any:
        if not self.rounds:
            return run_call(self.call, values)
        taken = dict.fromkeys(values_in((self.call.args, self.call.kwargs)))
        rounded = {value: _cast(values[value], torch.float32, torch.bfloat16) for value in taken}
        out = run_call(self.call, [rounded.get(value, entry) for value, entry in enumerate(values)])
        return pytree.tree_map(lambda leaf: _cast(leaf, torch.bfloat16, torch.float32), out)

    def native(self, shapes: Shapes) -> Native | None:
        shape = None if self.x < 0 else shapes[self.x]
        if shape is None:
            return None
        if self.linear is not None and len(shape) == 2 and shape[1] == self.linear.in_features:
            return Native(Kind.POINTWISE, self.x, (shape[0], self.linear.out_features), weights=self.place)
        if self.norm is not None and len(shape) == 4 and (shape[1],) == self.norm.normalized_shape:
            return Native(Kind.LAYER_NORM, self.x, shape, weights=self.place, in_place=True)
        if self.sides is not None and len(shape) == 4 and all(shapes[side] == shape for side in self.sides):
            return Native(Kind.ACTIVATION, self.x, shape, self.sides[1], in_place=True)
        if self.call.pools is not None and len(shape) == 4:
            return Native(Kind.POOL, self.x, (*shape[:2], 1, 1) if self.call.pools == "kept" else shape[:2])
        return None

    def flat_shape(self, shapes: Shapes) -> Shape | None:
        """The result's shape where it is the argument's memory under another name, channels last as well."""
        shape = None if self.x < 0 else shapes[self.x]
        flat = self.call.flattens and shape is not None and len(shape) == 4 and shape[2:] == (1, 1)
        return shape[:2] if flat and shape is not None else None


def is_float_norm(norm: nn.LayerNorm | None) -> bool:
    """Whether a call's layer norm is there, with parameters of float32 on the CPU if it has any."""
    if norm is None:
        return False
    return all(p is None or (p.dtype is torch.float32 and p.is_cpu) for p in (norm.weight, norm.bias))


def _holds_bfloat16(module: nn.Module) -> bool:
    attributes = (value for each in module.modules() for value in vars(each).values() if isinstance(value, Tensor))
    tensors = itertools.chain(module.parameters(), module.buffers(), attributes)
    return any(tensor.dtype is torch.bfloat16 for tensor in tensors)


def _cast(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    return value.to(after) if isinstance(value, Tensor) and value.dtype is before else value


def plain_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A batch norm without the activation that timm's applies as well."""
    return nn.BatchNorm2d.forward(norm, x)
