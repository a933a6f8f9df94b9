"""A program's training: stages hand one another their raw outputs, and a tensor is made where another step takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dwsep.accelerate import _gates, _mixed, _modules, _stages
from dwsep.accelerate._program import Call, Product, Program, Stage, Step, inputs_of, run_call, substitute, values_in
from dwsep.accelerate._segments import Plan, Segment
from dwsep.accelerate._stages import Pending
from dwsep.kernels.activations import FORWARD
from dwsep.kernels.triton import support
from dwsep.ops._layout import is_channels_last

# Runs an item of a plan, given its number and what runs it and returns what it made.
Watch = Callable[[int, Callable[[], list[Any]]], None]
# Whether networks train on stages at all, and whether they do where only the references of these run.
ENABLED = True
ON_REFERENCES = False
# Whether networks on a GPU train on stages.
ON_CUDA = support.FUSED
# Whether stretches of stages run as one call.
SEGMENTS = True


def is_available(x: Tensor | None = None) -> bool:
    """Whether training on stages is switched on, and fast: there are kernels for the device of ``x``, else the CPU."""
    if not ENABLED:
        return False
    if x is not None and x.is_cuda:
        return ON_CUDA and support.runs(x)
    return ON_REFERENCES or torch._C._dispatch_has_kernel_for_dispatch_key("dwsep::pointwise_stage", "CPU")


def admits(program: Program, cuda: bool = False) -> bool:
    """Whether parameters and statistics are what the stages take, on the CPU or on a GPU."""
    for module in program.stage_modules:
        parameters, buffers = module._parameters, module._buffers
        for tensor in (
            parameters.get("weight"), parameters.get("bias"), buffers.get("running_mean"), buffers.get("running_var")
        ):  # fmt: skip
            if tensor is not None and not (
                tensor.dtype is torch.float32 and (tensor.is_cuda if cuda else tensor.is_cpu)
            ):
                return False
    return True


def run(
    program: Program,
    plan: Plan,
    x: Tensor,
    watch: Watch | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Any:
    """The output of a program for an input (N, C, H, W), differentiable; running statistics follow.

    Args:
        program: whose outputs are wanted.
        plan: its steps, alone or in segments.
        x: the input.
        watch: called in place of each item of the plan, with its number and what runs it and returns what it made.
        dtypes: of the results, tensors all of them, which autocast would give; then products may round their operands
            to bfloat16, as they would under it. ``None``: what the results are made in.
    """
    values: list[Any] = [None] * plan.values
    rounds = dtypes is not None
    keeps = is_channels_last(x) or any(is_channels_last(conv.weight) for s in program.stages() for conv in s.convs)
    values[0] = x.contiguous(memory_format=torch.channels_last)
    for index, item in enumerate(plan.items):
        if watch is None:
            _item(item, values, rounds)
        else:
            watch(index, lambda item=item: _item(item, values, rounds))
        for value in item.inputs if isinstance(item, Segment) else inputs_of(item):
            if plan.last_use.get(value) == index:
                values[value] = None
    for value in values_in(program.outputs):
        values[value] = _tensor(values[value])
    results = substitute(program.outputs, values)
    if not keeps:
        results = [r.contiguous() if isinstance(r, Tensor) and r.dim() == 4 else r for r in results]
    if dtypes is not None:
        results = [r.to(dtype) for r, dtype in zip(results, dtypes, strict=True)]
    spec = program.output_spec
    return results[0] if spec.is_leaf() else pytree.tree_unflatten(results, spec)


def _item(item: Step | Segment, values: list[Any], rounds: bool) -> list[Any]:
    if isinstance(item, Segment):
        _segment(item, values, rounds)
        return [values[value] for value in item.outputs]
    values[item.output] = _step(item, values)
    return [values[item.output]]


def _segment(segment: Segment, values: list[Any], rounds: bool) -> None:
    """One native call, or, where it cannot be, the steps one by one."""
    inputs = [values[value] for value in segment.inputs]
    if SEGMENTS and all(isinstance(x, (Tensor, Pending)) for x in inputs):
        inputs = [_stages.as_operand(_tensor(x)) for x in inputs]
        first = inputs[0]
        runs = first.is_cuda or (first.is_cpu and first.dtype is torch.float32)
        if runs and all(x.dtype is first.dtype and x.device == first.device for x in inputs):
            lowered = segment.lower([tuple(x.shape) for x in inputs])
            if lowered is not None:
                # What autocast would cast is of its dtype already, or float32 because the kernels want it so.
                with torch.autocast("cuda", enabled=False) if first.is_cuda else nullcontext():
                    results = lowered.run(inputs, rounds)
                for value, result in zip(segment.outputs, results, strict=True):
                    values[value] = result
                return
    for step in segment.steps:
        values[step.output] = _step(step, values)


def _step(step: Step, values: list[Any]) -> Any:
    if isinstance(step, Stage):
        return _stage(step, values)
    if isinstance(step, Product):
        left, right = values[step.left], values[step.right]
        for x, gate in ((left, right), (right, left)):
            if isinstance(x, Pending) and isinstance(gate, (Tensor, Pending)):
                gate = _tensor(gate)
                if gate.shape == (*x.raw.shape[:2], 1, 1) and gate.shape != x.raw.shape:
                    return _gates.gated(x, gate)
        return _tensor(left) * _tensor(right)
    return _call(step, values)


def _call(step: Call, values: list[Any]) -> Any:
    taken = inputs_of(step)
    if step.pools is not None and isinstance(source := values[taken[0]], Pending):
        means = _gates.means(source)
        return means[:, :, None, None] if step.pools == "kept" else means
    pending = {value: values[value] for value in taken if isinstance(values[value], Pending)}
    for value, output in pending.items():
        values[value] = output.tensor()
    result = run_call(step, values)
    if step.looks:  # any other call may write into the tensor, or share it: later steps have to take that one
        for value, output in pending.items():
            values[value] = output
    return result


def _tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Pending) else value


def _stage(stage: Stage, values: list[Any]) -> Any:
    source = values[stage.input]
    if isinstance(source, Tensor):
        if source.dim() != 4:
            return FORWARD[stage.activation](source)  # an activation alone: whatever has a norm has four axes
        source = Pending(source)
    out = (
        _normalised(stage, source).then(stage.activation) if stage.activation != "none" else _normalised(stage, source)
    )
    if stage.residual is None:
        return out
    return out.tensor(_tensor(values[stage.residual]))


def _normalised(stage: Stage, x: Pending) -> Pending:
    """A stage's convolution and norm, each of which may be missing."""
    conv, norm = stage.conv, stage.norm
    if conv is None and not stage.mixed:
        return x if norm is None else _stages.norm_only(x.tensor(), norm)
    if x.scale is None and x.activation != "none" and x.exists:
        x = Pending(x.tensor())  # kept for backward already: the values before the activation need not be, too
    if conv is None:
        return _mixed.conv_norm(x, stage.mixed, norm)
    if x.raw.is_cuda and _stages.as_operand(x.raw) is not x.raw:
        x = Pending(_stages.as_operand(x.tensor()))
    geometry = _modules.geometry_of(conv)
    if _modules.is_pointwise(conv):
        return _stages.conv_norm(x, conv, norm, (), x.raw.shape[2:])
    if _modules.has_stage(conv):
        spatial = x.raw.shape[2:]
        pads = [side for pair in geometry.pads(spatial) for side in pair]
        sizes = geometry.stride, pads, geometry.dilation
        return _stages.conv_norm(x, conv, norm, sizes, geometry.output_size(spatial))
    y = _stages.convolved(x.tensor(), conv, geometry)
    return Pending(y) if norm is None else _stages.norm_only(y, norm)
