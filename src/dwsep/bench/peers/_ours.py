"""dwsep itself: its layer at inference, its function in training and for depthwise layers."""

from __future__ import annotations

from typing import Any

import torch

from dwsep import dispatch, functional
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.peers._eager import CHANNELS_LAST, training_step
from dwsep.bench.problem import BATCH_NORM_EPS, Norm, Problem
from dwsep.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

_LAYERS = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}


def build(problem: Problem) -> Built:
    """Builds the task on the native kernels."""
    status = dispatch.backends()["cpu"]
    if not status.available:
        # without them it would be PyTorch's kernels under our name
        raise CannotRun("; ".join(status.reasons))
    task, case = problem.task, problem.task.case
    memory_format = CHANNELS_LAST.get(case.ndim, torch.contiguous_format)
    x = problem.x.clone(memory_format=memory_format)
    if case.kind == "separable" and not task.training:
        layer = _make_layer(problem)
        return Built(lambda: layer(x))

    name = "depthwise_separable_conv" if case.kind == "separable" else "depthwise_conv"
    function = getattr(functional, f"{name}{case.ndim}d")
    weights = [weight.clone().requires_grad_(task.training) for weight in problem.weights]
    # Named, the backend cannot give way to PyTorch's kernels unseen.
    options: dict[str, Any] = {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "backend": "cpu",
        **({"inner_activation": "relu"} if task.variant == "inner_relu" else {}),
        **({"activation": "silu"} if task.variant == "silu" else {}),
    }
    if not task.training:
        return Built(lambda: function(x, *weights, **options))
    grad = problem.grad.clone(memory_format=memory_format)
    return Built(training_step(lambda x: function(x, *weights, **options), x, weights, grad))


def _make_layer(problem: Problem) -> torch.nn.Module:
    case = problem.task.case
    options: dict[str, Any] = {}
    if problem.norms:
        options = {"inner_norm": "batch", "inner_activation": "relu", "norm": "batch", "activation": "relu"}
    layer = _LAYERS[case.ndim](
        case.channels,
        case.out_channels,
        case.kernel,
        case.stride,
        "same",
        case.dilation,
        bias=False,
        dtype=problem.x.dtype,
        **options,
    )
    assert problem.pointwise is not None
    state = {"depthwise.weight": problem.depthwise, "pointwise.weight": problem.pointwise}
    for name, norm in zip(("inner_norm", "norm"), problem.norms):
        state |= _norm_state(name, norm)
        getattr(layer, name).eps = BATCH_NORM_EPS
    layer.load_state_dict(state)
    return layer.eval()


def _norm_state(name: str, norm: Norm) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": norm.weight,
        f"{name}.bias": norm.bias,
        f"{name}.running_mean": norm.mean,
        f"{name}.running_var": norm.var,
        f"{name}.num_batches_tracked": torch.tensor(0),
    }
