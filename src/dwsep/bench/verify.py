"""Whether a result is right: a speed is never reported for a wrong one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dwsep.bench.problem import BATCH_NORM_EPS, Norm, Problem
from dwsep.kernels import reference

_UNIT_ROUNDOFF = 2.0**-24  # of the float32 sums, which bfloat16 kernels have too
_SUM_MARGIN = 16
_STORAGE_ROUNDOFF = {"float32": 0.0, "bfloat16": 2.0**-8}
_STORAGE_MARGIN = 32  # a chain of norms rounds to bfloat16 up to five times, and the largest of millions is far out

_Geometry = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Truth:
    """What a result must be, and how far each element may be from it.

    Attributes:
        names: What the tensors are, in the order in which peers return them.
        values: Float64.
        allowed: Per tensor a number, or a tensor of its shape.
        in_norm: Whether ``allowed`` bounds the Euclidean norm of each tensor's error, instead of each element's.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    allowed: tuple[Tensor | float, ...]
    in_norm: bool = False


def compute_truth(problem: Problem) -> Truth:
    """Computes a task's results in float64 with :mod:`dwsep.kernels.reference`.

    An element may be off by 16 * sqrt(n) * 2^-24 of its tensor's root mean square, n being the terms of its sum: what
    rounding does to a sum in any order, and far below what one wrong tap does. In bfloat16, 32 * 2^-8 of it is added.
    SiLU, whose exponential rounds relative to its result, doubles that and adds 16 * 2^-24 of the element itself.
    Gradients may differ by more where rounding decides on which side of zero a ReLU's input is.

    Args:
        problem: The tensors of the task.

    Returns:
        The output, and in training the gradients of x and of each weight.
    """
    case, training = problem.task.case, problem.task.training
    x, grad = problem.x.double(), problem.grad.double()
    weights = [weight.double() for weight in problem.weights]
    pads = [side for pair in case.geometry.pads(case.spatial) for side in pair]
    geometry = ([case.stride] * case.ndim, pads, [case.dilation] * case.ndim)
    pixels = case.batch * math.prod(case.out_spatial)
    if case.kind != "separable":
        activation = "silu" if problem.task.variant == "silu" else "none"
        names, terms = ("y", "grad x", "grad weight"), (case.taps, case.taps, pixels)
        values: list[Any] = [reference.depthwise_conv(x, weights[0], None, *geometry, activation)]
        if training:
            values += reference.depthwise_conv_backward(
                grad, x, weights[0], None, *geometry, activation, (True, True, False)
            )[:2]
    else:
        names = ("y", "grad x", "grad depthwise weight", "grad pointwise weight")
        inner_terms, outer_terms = case.taps + case.channels, case.taps + case.out_channels
        terms = (inner_terms, outer_terms, pixels + case.out_channels, pixels + case.taps)
        inner_activation = "relu" if problem.task.variant == "inner_relu" else "none"
        both = (weights[0], weights[1])
        rest = (None, None, *geometry, inner_activation, "none", "none")
        values = [_with_norms(problem, geometry) if problem.norms else reference.separable_conv(x, *both, *rest)]
        if training:
            values += reference.separable_conv_backward(grad, x, *both, *rest, (True, True, True, False, False))[:3]
    allowed: list[Tensor | float] = [_allowed(problem, value, n) for value, n in zip(values, terms)]
    if training and problem.task.variant == "inner_relu":
        for position, doubt in enumerate(_kink_doubts(problem, geometry), start=1):
            allowed[position] = allowed[position] + doubt
    if problem.task.variant == "silu":
        for position, value in enumerate(values):
            allowed[position] = 2 * allowed[position] + _SUM_MARGIN * _UNIT_ROUNDOFF * value.abs()
    return Truth(names[: len(values)], tuple(values), tuple(allowed))


def find_fault(truth: Truth, tensors: Sequence[Tensor]) -> tuple[str | None, float]:
    """Compares a peer's tensors with the truth.

    Args:
        truth: From :func:`compute_truth`, or its counterpart for networks.
        tensors: As many tensors, in any dtype and memory format.

    Returns:
        What is wrong with them, or None; and the largest error as a fraction of what is allowed.
    """
    if len(tensors) != len(truth.values):
        return f"{len(tensors)} tensors instead of {len(truth.values)}", math.inf
    worst = 0.0
    for name, value, allowed, tensor in zip(truth.names, truth.values, truth.allowed, tensors, strict=True):
        if tensor.shape != value.shape:
            return f"{name} has shape {tuple(tensor.shape)} instead of {tuple(value.shape)}", math.inf
        error = tensor.detach().double() - value
        excess = ((error.norm() if truth.in_norm else error.abs()) / allowed).nan_to_num(nan=math.inf)
        worst = max(worst, float(excess.max()))
        if truth.in_norm and worst > 1:
            size = float(value.norm()) or 1.0
            away, bound = float(error.norm()) / size, float(allowed) / size
            return f"{name} is {away:.1e} of its norm away from float64's, {bound:.1e} is allowed", worst
        wrong = int((excess > 1).sum())
        if wrong:
            return f"{wrong} of {value.numel()} elements of {name} are wrong", worst
    return None, worst


def _allowed(problem: Problem, value: Tensor, terms: int) -> float:
    storage = _STORAGE_MARGIN * _STORAGE_ROUNDOFF[problem.task.dtype]
    return float(value.square().mean().sqrt()) * (_SUM_MARGIN * math.sqrt(terms) * _UNIT_ROUNDOFF + storage)


def _with_norms(problem: Problem, geometry: _Geometry) -> Tensor:
    """The output with a norm and a ReLU after each convolution."""
    depthwise, pointwise = (weight.double() for weight in problem.weights)
    inner = reference.depthwise_conv(problem.x.double(), depthwise, None, *geometry, "none")
    out = _pointwise(_norm_relu(inner, problem.norms[0]), pointwise)
    return _norm_relu(out, problem.norms[1])


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nc...,kc->nk...", x, weight.flatten(1))


def _norm_relu(x: Tensor, norm: Norm) -> Tensor:
    weight, bias, mean, var = (
        tensor.double().reshape(-1, *(1,) * (x.dim() - 2)) for tensor in (norm.weight, norm.bias, norm.mean, norm.var)
    )
    return ((x - mean) * (weight / (var + BATCH_NORM_EPS).sqrt()) + bias).relu()


def _kink_doubts(problem: Problem, geometry: _Geometry) -> list[Tensor]:
    """How far the gradients of x and of the depthwise weight may move with the side of zero that rounding chooses.

    Of the gradient there passes either nothing or all. What is below is linear, so that the absolute value of what may
    pass, sent on through absolute values, bounds the change.
    """
    x, (depthwise, pointwise) = problem.x.double(), (weight.double() for weight in problem.weights)
    raw = reference.depthwise_conv(x, depthwise, None, *geometry, "none")
    margin = _SUM_MARGIN * math.sqrt(problem.task.case.taps) * _UNIT_ROUNDOFF
    doubtful = raw.abs() <= margin * raw.square().mean().sqrt()
    if not doubtful.any():
        return []
    may_pass = _pointwise(problem.grad.double(), pointwise.transpose(0, 1)).abs() * doubtful
    grad_x, grad_depthwise, _ = reference.depthwise_conv_backward(
        may_pass, x.abs(), depthwise.abs(), None, *geometry, "none", (True, True, False)
    )
    assert grad_x is not None
    assert grad_depthwise is not None
    return [grad_x, grad_depthwise]
