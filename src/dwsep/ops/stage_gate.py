"""Squeeze and excite on what a stage leaves pending: ``stage_pool`` and ``stage_gate`` with their way back.

``stage_squeeze_backward`` goes back through the means and through the product with the gate in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops import _stage_cuda
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last

_PENDING = "Tensor x, Tensor? scale, Tensor? shift, str activation"
LIBRARY.define(f"stage_pool({_PENDING}) -> Tensor")
LIBRARY.define(f"stage_gate({_PENDING}, Tensor gate) -> Tensor")
LIBRARY.define(f"stage_gate_gradient(Tensor grad, {_PENDING}) -> Tensor")
LIBRARY.define(f"stage_squeeze_backward(Tensor? grad, Tensor? gate, Tensor? grad_mean, {_PENDING}) -> (Tensor, Tensor)")


def _gate(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, gate: Tensor) -> Tensor:
    return channels_last(stage_reference.gate(x, scale, shift, activation, gate))


def _check_together(grad: Tensor | None, gate: Tensor | None) -> None:
    if (grad is None) != (gate is None):
        raise RuntimeError("grad and gate must be given together")


def _squeeze_backward(
    grad: Tensor | None,
    gate: Tensor | None,
    grad_mean: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    _check_together(grad, gate)
    grad_x, affine = stage_reference.squeeze_backward(grad, gate, grad_mean, x, scale, shift, activation)
    return channels_last(grad_x), x.new_empty(0) if affine is None else affine


def _finish_squeeze(
    found: tuple[Tensor, Tensor | None], grad: Tensor | None, gate: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    _check_together(grad, gate)
    grad_x, affine = found
    return grad_x, grad_x.new_empty(0) if affine is None else affine


LIBRARY.impl("stage_pool", stage_reference.pool, "CompositeExplicitAutograd")
LIBRARY.impl("stage_gate", _gate, "CompositeExplicitAutograd")
LIBRARY.impl("stage_gate_gradient", stage_reference.gate_gradient, "CompositeExplicitAutograd")
LIBRARY.impl("stage_squeeze_backward", _squeeze_backward, "CompositeExplicitAutograd")
_stage_cuda.implement("stage_pool", stage_reference.pool, "stage_gate", "pool")
_stage_cuda.implement("stage_gate", _gate, "stage_gate", "gate")
_stage_cuda.implement("stage_gate_gradient", stage_reference.gate_gradient, "stage_gate", "gate_gradient", x=1)
_stage_cuda.implement(
    "stage_squeeze_backward", _squeeze_backward, "stage_gate", "squeeze_backward", x=3, finish=_finish_squeeze
)


@torch.library.register_fake("dwsep::stage_pool", lib=LIBRARY)
def _(x, scale, shift, activation):
    return x.new_empty(x.shape[:2])


@torch.library.register_fake("dwsep::stage_gate", lib=LIBRARY)
def _(x, scale, shift, activation, gate):
    return empty_channels_last(x, x.shape[1], x.shape[2:])


@torch.library.register_fake("dwsep::stage_gate_gradient", lib=LIBRARY)
def _(grad, x, scale, shift, activation):
    return x.new_empty(x.shape[:2])


@torch.library.register_fake("dwsep::stage_squeeze_backward", lib=LIBRARY)
def _(grad, gate, grad_mean, x, scale, shift, activation):
    affine = x.new_empty(0) if scale is None else x.new_empty((2, x.shape[1]), dtype=torch.float64)
    return empty_channels_last(x, x.shape[1], x.shape[2:]), affine
