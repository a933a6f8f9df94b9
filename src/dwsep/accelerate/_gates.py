"""Squeeze and excite in training: the means and the product with the gate read the raw output, and go back at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dwsep.accelerate._stages import Pending

stage_ops = torch.ops.dwsep


@dataclass
class _Passage:
    """From the backward of a product to that of the squeeze which it follows: the gate, (N, C)."""

    gate: Tensor | None = None


class _Squeeze(torch.autograd.Function):
    """The means (N, C) of a pending output, if wanted, and its raw tensor, passed through for one product with a gate.

    The gradient that comes back through the passed tensor is that of the product, not yet multiplied by the gate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_carrier: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        activation: str,
        wants_means: bool,
        passage: _Passage,
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.activation, ctx.passage = activation, passage
        ctx.save_for_backward(x, scale, shift)
        means = stage_ops.stage_pool(x, scale, shift, activation) if wants_means else None
        return means, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_means: Tensor | None, grad_product: Tensor | None) -> tuple[Any, ...]:
        x, scale, shift = ctx.saved_tensors
        gate, ctx.passage.gate = ctx.passage.gate, None
        grad_x = grad_affine = None
        if grad_means is not None or grad_product is not None:
            gate = None if grad_product is None else gate
            grad_x, grad_affine = stage_ops.stage_squeeze_backward(
                grad_product, gate, grad_means, x, scale, shift, ctx.activation
            )
        needs = ctx.needs_input_grad
        grads = (grad_x, grad_affine)
        return (*(one if need else None for one, need in zip(grads, needs, strict=False)), *(None,) * 5)


class _Gate(torch.autograd.Function):
    """A passed raw tensor, its scale, shift and activation applied, times a gate (N, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        activation: str,
        passage: _Passage,
    ) -> Tensor:
        ctx.activation, ctx.passage = activation, passage
        ctx.save_for_backward(x, gate, scale, shift)
        return stage_ops.stage_gate(x, scale, shift, activation, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, gate, scale, shift = ctx.saved_tensors
        grad_gate = None
        if ctx.needs_input_grad[1]:
            grad_gate = stage_ops.stage_gate_gradient(grad, x, scale, shift, ctx.activation)
        ctx.passage.gate = gate.detach()  # with its history it would hold the graph that holds the passage
        return (grad if ctx.needs_input_grad[0] else None), grad_gate, None, None, None, None


def _squeeze(x: Pending, wants_means: bool) -> Tensor | None:
    passage = _Passage()
    means, raw = _Squeeze.apply(x.raw, x.carrier, x.scale, x.shift, x.activation, wants_means, passage)
    x.passed = (raw, passage)
    return means


def means(x: Pending) -> Tensor:
    """The means (N, C) over the pixels of a pending output."""
    found = _squeeze(x, True)
    assert found is not None
    return found


def gated(x: Pending, gate: Tensor) -> Tensor:
    """A pending output times a gate (N, C, 1, 1)."""
    if x.passed is None:
        _squeeze(x, False)
    assert x.passed is not None
    (raw, passage), x.passed = x.passed, None  # a second product would add its gradient to one with another gate
    return _Gate.apply(raw, gate.flatten(1), x.scale, x.shift, x.activation, passage)
