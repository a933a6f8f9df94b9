"""A program's inference: norms folded into weights, weights packed, activations and sums where a result is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dwsep import functional
from dwsep.accelerate import _folding, _modules
from dwsep.accelerate._program import Call, Product, Program, Stage, inputs_of, run_call, substitute, values_in
from dwsep.kernels.activations import FORWARD
from dwsep.ops._layout import is_channels_last

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


class _Step(NamedTuple):
    run: Callable[[list[Any]], Any]
    output: int
    release: tuple[int, ...]


def _add(out: Tensor, residual: Tensor) -> Tensor:
    """The sum, in place of ``out`` where the shapes agree as eager's broadcasting allows."""
    return out.add_(residual) if out.shape == residual.shape else out + residual


def _pads(geometry: Any, spatial: Any) -> list[int]:
    return [side for pair in geometry.pads(spatial) for side in pair]


class _Pointwise:
    def __init__(self, stage: Stage) -> None:
        assert stage.conv is not None
        self.x, self.residual, self.activation = stage.input, stage.residual, stage.activation
        weight, bias = _folding.fold(stage.conv, stage.norm)
        self.channels = weight.shape[0]
        self.packed = torch.ops.dwsep.pack_pointwise_weights(weight, bias)

    def __call__(self, values: list[Any]) -> Tensor:
        x = values[self.x]
        residual = None if self.residual is None else values[self.residual]
        # What broadcasts is left to torch.
        fits = residual is None or residual.shape == (x.shape[0], self.channels, *x.shape[2:])
        out = torch.ops.dwsep.pointwise_conv_packed(
            x, self.packed, self.channels, self.activation, residual if fits else None
        )
        return out if fits or residual is None else _add(out, residual)


class _Dense:
    """Any convolution that no kernel of ours runs: torch's, with the norm folded."""

    def __init__(self, stage: Stage) -> None:
        conv = stage.conv
        assert conv is not None
        self.x, self.residual, self.activation = stage.input, stage.residual, _IN_PLACE[stage.activation]
        weight, self.bias = _folding.fold(conv, stage.norm)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.geometry = _modules.geometry_of(conv)
        self.groups = conv.groups
        padding = self.geometry.padding
        symmetric = padding is not None and all(low == high for low, high in padding)
        self.padding = [low for low, _ in padding] if symmetric and padding is not None else None

    def __call__(self, values: list[Any]) -> Tensor:
        x, padding, g = values[self.x], self.padding, self.geometry
        if padding is None:
            (top, bottom), (left, right) = g.pads(x.shape[2:])
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        out = self.activation(F.conv2d(x, self.weight, self.bias, g.stride, padding, g.dilation, self.groups))
        return out if self.residual is None else _add(out, values[self.residual])


class _Depthwise:
    def __init__(self, stage: Stage) -> None:
        assert stage.conv is not None
        self.x, self.residual, self.activation = stage.input, stage.residual, stage.activation
        self.weight, self.bias = _folding.fold(stage.conv, stage.norm)
        self.geometry = _modules.geometry_of(stage.conv)
        self.pads = None if self.geometry.padding is None else _pads(self.geometry, ())

    def __call__(self, values: list[Any]) -> Tensor:
        x, g = values[self.x], self.geometry
        pads = _pads(g, x.shape[2:]) if self.pads is None else self.pads
        out = torch.ops.dwsep.depthwise_conv(x, self.weight, self.bias, g.stride, pads, g.dilation, self.activation)
        return out if self.residual is None else _add(out, values[self.residual])


class _Separable:
    """A depthwise stage whose output only a pointwise stage takes: one call, the tensor between stays in the cache."""

    def __init__(self, depthwise: Stage, pointwise: Stage) -> None:
        assert depthwise.conv is not None
        assert pointwise.conv is not None
        first, second = _folding.fold(depthwise.conv, depthwise.norm), _folding.fold(pointwise.conv, pointwise.norm)
        self.packed = torch.ops.dwsep.pack_separable_weights(first[0], second[0], first[1], second[1])
        self.channels = first[0].shape[0], second[0].shape[0]
        self.geometry = _modules.geometry_of(depthwise.conv)
        self.pads = None if self.geometry.padding is None else _pads(self.geometry, ())
        own_input = pointwise.residual == depthwise.input and self.channels[1] == depthwise.conv.in_channels
        self.own_input = own_input and set(self.geometry.stride) == {1}
        self.options = depthwise.activation, pointwise.activation, "input" if self.own_input else "none"
        self.x = depthwise.input
        self.residual = None if self.own_input else pointwise.residual

    def __call__(self, values: list[Any]) -> Tensor:
        x, g = values[self.x], self.geometry
        pads = _pads(g, x.shape[2:]) if self.pads is None else self.pads
        out = torch.ops.dwsep.separable_conv_packed(
            x, self.packed, *self.channels, g.kernel_size, g.stride, pads, g.dilation, *self.options
        )
        return out if self.residual is None else _add(out, values[self.residual])


class _Product:
    """A product, in place where the tensor is a stage's own and nobody takes it afterwards."""

    def __init__(self, product: Product, own: bool) -> None:
        self.left, self.right, self.own = product.left, product.right, own

    def __call__(self, values: list[Any]) -> Tensor:
        x, gate = values[self.left], values[self.right]
        if _gates(gate, x):
            return x.mul_(gate) if self.own else x * gate
        return x * gate


def _gates(gate: Any, x: Any) -> bool:
    """Whether a tensor scales the channels of another."""
    return isinstance(gate, Tensor) and isinstance(x, Tensor) and gate.shape == (*x.shape[:2], 1, 1) and x.dim() == 4


class _Unfolded:
    """A stage whose norm cannot be folded, or which is a norm or an activation alone."""

    def __init__(self, stage: Stage) -> None:
        self.x, self.residual, self.conv, self.norm = stage.input, stage.residual, stage.conv, stage.norm
        self.activation = FORWARD[stage.activation]

    def __call__(self, values: list[Any]) -> Tensor:
        x = values[self.x]
        x = x if self.conv is None else self.conv(x)
        x = self.activation(x if self.norm is None else plain_norm(self.norm, x))
        return x if self.residual is None else x + values[self.residual]


def plain_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A batch norm without the activation that timm's applies as well."""
    return nn.BatchNorm2d.forward(norm, x)


def _separable_ends(program: Program) -> dict[int, Stage]:
    """By position, the depthwise stages that run together with the pointwise stage which alone takes their output."""
    users = program.users()
    producers = {step.output: (index, step) for index, step in enumerate(program.steps)}
    pairs: dict[int, Stage] = {}
    for step in program.steps:
        if not isinstance(step, Stage) or step.conv is None or not _modules.is_pointwise(step.conv):
            continue
        index, producer = producers.get(step.input, (-1, None))
        if not isinstance(producer, Stage) or producer.conv is None or producer.residual is not None:
            continue
        alone = users[producer.output] == 1 and _modules.is_depthwise(producer.conv)
        foldable = _folding.folds(producer.norm) and _folding.folds(step.norm)
        if alone and foldable and functional.packs(producer.conv.weight):
            pairs[index] = step
    return pairs


def _product(program: Program, index: int, product: Product) -> _Product:
    """The product with what is gated on the left."""
    fresh = {step.output for step in program.steps if isinstance(step, Stage) and step.conv is not None}
    last = {value for value in (product.left, product.right) if program.last_use.get(value) == index}
    if product.right in fresh and product.left not in fresh:
        product = Product(product.right, product.left, product.output)
    lookers = {value for s in program.steps if isinstance(s, Call) and not s.looks for value in inputs_of(s)}
    own = product.left in fresh & last and product.left not in lookers and product.left != product.right
    return _Product(product, own)


def _single(stage: Stage, native: bool) -> Callable[[list[Any]], Any]:
    if stage.conv is None or not _folding.folds(stage.norm):
        return _Unfolded(stage)
    if native and _modules.is_pointwise(stage.conv):
        return _Pointwise(stage)
    if native and _modules.is_depthwise(stage.conv):
        return _Depthwise(stage)
    return _Dense(stage)


class Plan:
    """A program with its weights prepared; valid while :meth:`is_current`.

    Raises:
        NotImplementedError: a parameter's changes cannot be told.
    """

    def __init__(self, program: Program) -> None:
        modules = [module for stage in program.stages() for module in (stage.conv, stage.norm) if module is not None]
        self.sources = _folding.Sources(modules)
        self.norms = self.sources.norms
        if any(tensor.dtype is not torch.float32 or not tensor.is_cpu for tensor in self.sources.tensors):
            raise NotImplementedError("a parameter is not of float32 or not on the CPU")
        self.outputs, self.spec, self.count = program.outputs, program.output_spec, program.values
        convs = [stage.conv for stage in program.stages() if stage.conv is not None]
        self.channels_last = any(is_channels_last(conv.weight) for conv in convs)
        native = bool(convs) and functional.packs(convs[0].weight)
        pairs = _separable_ends(program)
        merged = {id(stage) for stage in pairs.values()}
        steps: list[tuple[Callable[[list[Any]], Any], int, list[int]]] = []
        for index, step in enumerate(program.steps):
            if isinstance(step, Call):
                steps.append((lambda values, step=step: run_call(step, values), step.output, inputs_of(step)))
            elif isinstance(step, Product):
                steps.append((_product(program, index, step), step.output, inputs_of(step)))
            elif id(step) in merged:
                depthwise = next(program.steps[i] for i, end in pairs.items() if end is step)
                assert isinstance(depthwise, Stage)
                taken = [depthwise.input] + ([] if step.residual is None else [step.residual])
                steps.append((_Separable(depthwise, step), step.output, taken))
            elif index not in pairs:
                steps.append((_single(step, native), step.output, inputs_of(step)))
        self.steps = _with_releases(steps, set(values_in(program.outputs)))

    def is_current(self) -> bool:
        """Whether nothing that the prepared weights come from has changed."""
        return self.sources.are_current()

    def run(self, x: Tensor) -> Any:
        """The module's output for an input (N, C, H, W)."""
        keeps = self.channels_last or is_channels_last(x)
        values: list[Any] = [None] * self.count
        values[0] = x.contiguous(memory_format=torch.channels_last)
        for run, output, release in self.steps:
            values[output] = run(values)
            for value in release:
                values[value] = None
        results = substitute(self.outputs, values)
        if not keeps:
            results = [r.contiguous() if isinstance(r, Tensor) and r.dim() == 4 else r for r in results]
        return pytree.tree_unflatten(results, self.spec) if not self.spec.is_leaf() else results[0]


def _with_releases(steps: list[tuple[Callable[[list[Any]], Any], int, list[int]]], kept: set[int]) -> tuple[_Step, ...]:
    """The steps with the values that each is the last one to take, so that memory is free for the next."""
    seen = set(kept)
    result = []
    for run, output, taken in reversed(steps):
        release = tuple(value for value in dict.fromkeys(taken) if value not in seen)
        seen.update(taken)
        result.append(_Step(run, output, release))
    return tuple(reversed(result))
