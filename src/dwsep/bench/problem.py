"""The tensors of a task: the same weights and input for every peer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dwsep.bench.registry import Task

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """A batch norm in evaluation: four tensors of shape (channels,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Problem:
    """Input, weights and output gradient of a task, contiguous and in its dtype.

    Attributes:
        task: What is measured.
        x: (N, C, *spatial).
        depthwise: (C, 1, *kernel).
        pointwise: (K, C, 1, ...), or None for a depthwise layer.
        norms: After each convolution in the variant "norm", else empty.
        grad: (N, K, *out_spatial), the gradient with respect to the output.
    """

    task: Task
    x: Tensor
    depthwise: Tensor
    pointwise: Tensor | None
    norms: tuple[Norm, ...]
    grad: Tensor

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The convolutions' weights, which training takes gradients of."""
        return (self.depthwise,) if self.pointwise is None else (self.depthwise, self.pointwise)


def make_problem(task: Task, seed: int = 0) -> Problem:
    """Draws the tensors of a task, all of unit scale and the same in every process.

    Example:
        >>> from dwsep.bench.registry import plan
        >>> problem = make_problem(plan("separable", names=["1024-1024"], batches=[1])[0])
        >>> problem.x.shape, problem.grad.shape
        (torch.Size([1, 1024, 7, 7]), torch.Size([1, 1024, 7, 7]))
    """
    case, dtype = task.case, getattr(torch, task.dtype)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    def norm(channels: int) -> Norm:
        weight, var = (0.5 + torch.rand(2, channels, generator=generator)).to(dtype)
        return Norm(weight, draw(channels, scale=0.3), draw(channels, scale=0.3), var)

    separable = case.kind == "separable"
    return Problem(
        task=task,
        x=draw(case.batch, case.channels, *case.spatial),
        depthwise=draw(case.channels, 1, *case.kernel, scale=case.taps**-0.5),
        pointwise=draw(case.out_channels, case.channels, *(1,) * case.ndim, scale=case.channels**-0.5)
        if separable
        else None,
        norms=(norm(case.channels), norm(case.out_channels)) if task.variant == "norm" else (),
        grad=draw(case.batch, case.out_channels, *case.out_spatial),
    )
