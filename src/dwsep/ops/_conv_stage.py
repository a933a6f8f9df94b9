"""Defines the operators of a convolution's stage, pointwise, depthwise or dense, and of its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels.triton import support
from dwsep.ops import _stage_cuda
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients
from dwsep.ops.depthwise_conv import output_spatial

_LOAD = "Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor weight"
GEOMETRY = "int[] stride, int[] padding, int[] dilation"


def define(
    name: str,
    reference: Callable[..., Any],
    reference_backward: Callable[..., Any],
    geometry_schema: str = "",
    *,
    cuda: str = "",
    cuda_runs: Callable[[Tensor, Tensor], bool] = lambda x, weight: support.runs(x),
) -> None:
    """Define ``dwsep::{name}`` and ``dwsep::{name}_backward``.

    Args:
        name: of the forward.
        reference: takes the operator's arguments, a geometry as one of them.
        reference_backward: likewise.
        geometry_schema: :data:`GEOMETRY` for a convolution which has one.
        cuda: module of ``dwsep.kernels.triton`` whose ``forward`` and ``backward`` take the operators' arguments.
        cuda_runs: whether they run, of x and the weight.
    """
    schema = f", {geometry_schema}" if geometry_schema else ""
    LIBRARY.define(f"{name}({_LOAD}, Tensor? bias{schema}) -> (Tensor, Tensor)")
    LIBRARY.define(
        f"{name}_backward(Tensor grad, Tensor y, Tensor? correction, {_LOAD}, bool has_bias{schema}, "
        "bool[2] output_mask) -> (Tensor, Tensor, Tensor, Tensor)"
    )

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *load_and_weights, geometry = _with_geometry(arguments, 6)
        y, sums = reference(*load_and_weights, geometry)
        return channels_last(y), sums

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        *others, output_mask = arguments
        _, _, _, x, scale, _, _, weight, has_bias, _ = of = _with_geometry(others, 9)
        return gradients(reference_backward(*of, output_mask), x, scale, weight, has_bias, output_mask)

    def finish(found: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, ...]:
        _, _, _, x, scale, _, _, weight, has_bias, *_, output_mask = arguments
        return gradients(found, x, scale, weight, has_bias, output_mask)

    def fake(*arguments: Any) -> tuple[Tensor, Tensor]:
        x, _, _, _, weight, _, geometry = _with_geometry(arguments, 6)
        spatial = output_spatial(x, weight.shape[2:], *geometry) if geometry else x.shape[2:]
        y = empty_channels_last(x, weight.shape[0], spatial)
        return y, x.new_empty((2, weight.shape[0]), dtype=torch.float64)

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, _, x, scale, _, _, weight, has_bias, *_, output_mask = arguments
        return gradients(None, x, scale, weight, has_bias, output_mask)

    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
    if cuda:
        _stage_cuda.implement(name, forward, cuda, "forward", weight=4, runs=cuda_runs)
        _stage_cuda.implement(
            f"{name}_backward", backward, cuda, "backward", x=3, weight=7, runs=cuda_runs, finish=finish
        )
    torch.library.register_fake(f"dwsep::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"dwsep::{name}_backward", fake_backward, lib=LIBRARY)


def _with_geometry(arguments: Sequence[Any], others: int) -> tuple[Any, ...]:
    """The arguments, with what comes behind the first ``others`` as one."""
    return *arguments[:others], tuple(arguments[others:])
