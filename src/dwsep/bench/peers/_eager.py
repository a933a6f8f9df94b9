"""PyTorch's own layers, as a user writes them, in either memory format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.bench.peers._built import Built
from dwsep.bench.problem import BATCH_NORM_EPS, Norm, Problem

_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def build_nchw(problem: Problem) -> Built:
    """Builds the layers in the contiguous format."""
    return _build(problem, make_network(problem), problem.x.clone(), problem.grad)


def build_channels_last(problem: Problem) -> Built:
    """Builds the layers in the channels-last format. A signal becomes an image one pixel high, as it has no other."""
    ndim = problem.task.case.ndim
    if ndim == 1:
        lifted = make_network(problem, lift=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, grad = (_channels_last(tensor.unsqueeze(2)) for tensor in (problem.x, problem.grad))
        built = _build(problem, lifted, x, grad)
        return Built(built.call, lambda result: [tensor.squeeze(2) for tensor in built.tensors(result)])
    network = make_network(problem).to(memory_format=CHANNELS_LAST[ndim])  # type: ignore[call-overload]
    return _build(problem, network, _channels_last(problem.x), _channels_last(problem.grad))


def make_network(problem: Problem, lift: bool = False) -> nn.Sequential:
    """Makes the task's network with the problem's weights, in evaluation where it is not trained.

    Args:
        problem: Weights and geometry.
        lift: Whether a one-dimensional case becomes a two-dimensional one of height 1.

    Returns:
        Convolutions, norms and activations in the order in which they run.
    """
    case, task = problem.task.case, problem.task
    pads, kernel = case.geometry.pads(case.spatial), case.kernel
    if lift:
        pads, kernel = ((0, 0), *pads), (1, *kernel)
    conv, norm_class = _CONV[len(kernel)], _NORM[len(kernel)]
    causal = case.padding == "causal"
    # A causal convolution is written with its padding on either side, and the outputs that look ahead are cut off.
    padding = tuple(max(pair) if causal else min(pair) for pair in pads)
    options: dict[str, Any] = {"padding": padding, "stride": case.stride, "dilation": case.dilation, "bias": False}
    depthwise = conv(case.channels, case.channels, kernel, groups=case.channels, **options)  # type: ignore[arg-type]
    layers: list[nn.Module] = [_with_weight(depthwise, problem.depthwise)]
    rest = [side - both for pair, both in zip(reversed(pads), reversed(padding)) for side in pair]
    if causal:
        layers.append(_First(case.out_spatial[-1]))
    elif any(rest):  # a convolution pads both sides alike; padding="same" does the same as this, with a warning
        layers.insert(0, nn.ConstantPad2d(rest, 0.0) if lift else nn.ConstantPad1d(rest, 0.0))  # type: ignore[arg-type]
    if problem.norms:
        layers += [_norm(norm_class, problem.norms[0]), nn.ReLU(inplace=True)]
    elif task.variant == "inner_relu":
        layers.append(nn.ReLU(inplace=True))
    elif task.variant == "silu":
        layers.append(nn.SiLU())
    if problem.pointwise is not None:
        layers.append(_with_weight(conv(case.channels, case.out_channels, 1, bias=False), problem.pointwise))
    if problem.norms:
        layers += [_norm(norm_class, problem.norms[1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers).to(problem.x.dtype).train(task.training)


class _First(nn.Module):
    """The first outputs along the last axis."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.count]


def training_step(
    network: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor], grad: Tensor
) -> Callable[[], Any]:
    """Makes a call that runs a network and differentiates it by its input and weights, the output's gradient given."""
    inputs = [x.requires_grad_(), *weights]

    def step() -> tuple[Tensor, ...]:
        y = network(x)
        return (y, *torch.autograd.grad(y, inputs, grad))

    return step


def _build(problem: Problem, network: nn.Sequential, x: Tensor, grad: Tensor) -> Built:
    if problem.task.training:
        return Built(training_step(network, x, list(network.parameters()), grad))
    return Built(lambda: network(x))


def _with_weight(conv: Any, weight: Tensor) -> Any:
    with torch.no_grad():
        conv.weight.copy_(weight.view_as(conv.weight))
    return conv


def _norm(norm_class: Any, values: Norm) -> nn.Module:
    norm = norm_class(values.weight.numel(), eps=BATCH_NORM_EPS)
    with torch.no_grad():
        for target, source in (
            (norm.weight, values.weight),
            (norm.bias, values.bias),
            (norm.running_mean, values.mean),
            (norm.running_var, values.var),
        ):
            target.copy_(source)
    return norm


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=CHANNELS_LAST[tensor.dim() - 2])
