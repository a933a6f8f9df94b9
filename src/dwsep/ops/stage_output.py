"""``dwsep::stage_output`` and its backward: what a stage leaves pending, norm, activation and residual, as a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops import _stage_cuda
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last

NAME = "stage_output"
LIBRARY.define(f"{NAME}(Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor? residual) -> Tensor")
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor x, Tensor? scale, Tensor? shift, str activation) -> (Tensor, Tensor)"
)


def _forward(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    out = stage_reference.output(x, scale, shift, activation, residual)
    # An output never shares memory with an input.
    return channels_last(out.clone() if out is x else out)


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    grad_x, grad_affine = stage_reference.through_affine(grad, x, scale, shift, activation)
    grad_x = channels_last(grad_x.clone() if grad_x is grad else grad_x)
    return grad_x, x.new_empty(0) if grad_affine is None else grad_affine


def _finish(found: tuple[Tensor, Tensor | None], grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_affine = found
    return grad_x, x.new_empty(0) if grad_affine is None else grad_affine


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")
_stage_cuda.implement(NAME, _forward, "stage_output", "forward")
_stage_cuda.implement(f"{NAME}_backward", _backward, "stage_output", "backward", x=1, finish=_finish)


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, scale, shift, activation, residual):
    return empty_channels_last(x, x.shape[1], x.shape[2:])


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, x, scale, shift, activation):
    affine = x.new_empty(0) if scale is None else x.new_empty((2, x.shape[1]), dtype=torch.float64)
    return empty_channels_last(x, x.shape[1], x.shape[2:]), affine
