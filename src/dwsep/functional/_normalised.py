"""The operators with their arguments normalised, which functions and modules of every rank call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwsep import dispatch, ops
from dwsep.functional._arguments import check_depthwise_weight, check_input, check_residual, check_tensor
from dwsep.geometry import ConvGeometry
from dwsep.ops._direct import call_key, wants_gradient
from dwsep.ops._layout import in_layout_of, is_channels_last


def _effective_dtype(x: Tensor, autocast: bool) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if autocast and x.dtype != torch.float64 else x.dtype


def _flat(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(side for pair in pairs for side in pair)


class _Call(NamedTuple):
    """A call whose arguments were checked: what runs it, and what follows its tensors."""

    function: Callable[..., Tensor]
    rest: tuple[Any, ...]


_calls: dict[tuple[Any, ...], _Call] = {}
_MOST_CALLS = 4096


def _known_call(key: tuple[Any, ...] | None) -> _Call | None:
    if key is None:
        return None
    try:
        return _calls.get(key)
    except TypeError:  # an argument of a wrong type, of which the checks have more to say
        return None


def _remember(
    key: tuple[Any, ...] | None, selection: dispatch.Selection, rest: tuple[Any, ...], x: Tensor, batched: bool
) -> None:
    """Let the next call like this one do without checks: they take longer than the kernels of a small layer."""
    if key is None or not batched or (selection.backend == "reference" and x.dim() != 4):
        return
    if len(_calls) >= _MOST_CALLS:
        _calls.clear()
    _calls[key] = _Call(selection.direct, rest)


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, activation: str, backend: str
) -> Tensor:
    """Depthwise convolution with its arguments normalised: what the functions and modules of every rank call."""
    key = call_key(geometry, (activation, backend), x, weight, bias)
    known = _known_call(key)
    if known is not None:
        return known.function(x, weight, bias, *known.rest)
    ndim = geometry.ndim
    x, batched, autocast = check_input(x, weight, ndim)
    check_depthwise_weight("weight", weight, x, ndim, autocast)
    if bias is not None:
        check_tensor("bias", bias, x, (weight.shape[0],), autocast)
    spatial = x.shape[2:]
    geometry.output_size(spatial)
    channels_last, gradient = is_channels_last(x), wants_gradient(x, weight, bias)
    selection = dispatch.select(
        "depthwise_conv",
        geometry,
        _effective_dtype(x, autocast),
        x.device.type,
        backend,
        gradient=gradient,
        channels_last=channels_last,
    )
    rest = (geometry.stride, _flat(geometry.pads(spatial)), geometry.dilation, activation)
    _remember(key, selection, rest, x, batched)
    return _finished(selection.kernel(x, weight, bias, *rest), x, selection, batched)


def depthwise_separable_conv(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    geometry: ConvGeometry,
    inner_activation: str,
    activation: str,
    residual: str,
    backend: str,
) -> Tensor:
    """Separable convolution with its arguments normalised: what the functions and modules of every rank call."""
    weights = (depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias)
    key = call_key(geometry, (inner_activation, activation, residual, backend), x, *weights)
    known = _known_call(key)
    if known is not None:
        return known.function(x, *weights, *known.rest)
    ndim = geometry.ndim
    x, batched, autocast = check_input(x, depthwise_weight, ndim)
    check_depthwise_weight("depthwise_weight", depthwise_weight, x, ndim, autocast)
    inner_channels = depthwise_weight.shape[0]
    check_tensor("pointwise_weight", pointwise_weight, x, (None, inner_channels, *(1,) * ndim), autocast)
    if depthwise_bias is not None:
        check_tensor("depthwise_bias", depthwise_bias, x, (inner_channels,), autocast)
    if pointwise_bias is not None:
        check_tensor("pointwise_bias", pointwise_bias, x, (pointwise_weight.shape[0],), autocast)
    spatial = x.shape[2:]
    out_spatial = geometry.output_size(spatial)
    if residual != "none":
        check_residual(residual, x, inner_channels, pointwise_weight.shape[0], out_spatial)
    selection = dispatch.select(
        "separable_conv",
        geometry,
        _effective_dtype(x, autocast),
        x.device.type,
        backend,
        gradient=wants_gradient(x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias),
        channels_last=is_channels_last(x),
    )
    pads = _flat(geometry.pads(spatial))
    rest = (geometry.stride, pads, geometry.dilation, inner_activation, activation, residual)
    _remember(key, selection, rest, x, batched)
    return _finished(selection.kernel(x, *weights, *rest), x, selection, batched)


def _finished(out: Tensor, x: Tensor, selection: dispatch.Selection, batched: bool) -> Tensor:
    """The output in the memory format of ``x``, which PyTorch's convolutions keep for two axes alone."""
    if selection.backend == "reference" and x.dim() != 4:
        out = in_layout_of(x, out)
    return out if batched else out.squeeze(0)


def packs(weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the native kernels take weights like this one packed ahead, as ``dtype`` if not their own, and pay."""
    dtype = weight.dtype if dtype is None else dtype
    runs = weight.device.type == "cpu" and dtype in dispatch.CPU_DTYPES and ops.native_status().loaded
    return runs and not dispatch.stock_reasons("separable_conv", dtype)
