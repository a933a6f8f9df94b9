"""Sequences through the 1d layers: chunk by chunk with a state, and of different lengths in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dwsep import functional
from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry, check_int
from dwsep.nn import _folding, _parts

if TYPE_CHECKING:
    from dwsep.nn._depthwise import DepthwiseConv1d, _DepthwiseConv
    from dwsep.nn._separable import DepthwiseSeparableConv1d

_ONE_TAP = ConvGeometry.make(1, 1)


def _check_causal(depthwise: _DepthwiseConv) -> None:
    history = _history(depthwise.geometry)
    if depthwise.geometry.padding != ((history, 0),) or (history and depthwise.padding_mode != "zeros"):
        raise ArgumentError(
            "step needs a causal layer (padding='causal', padding_mode='zeros'), got "
            f"padding={depthwise.padding!r}, padding_mode={depthwise.padding_mode!r}"
        )


def _history(geometry: ConvGeometry) -> int:
    return geometry.effective_kernel_size[0] - 1


def initial_state(layer: _DepthwiseConv, batch_size: int) -> Tensor:
    """The work of both layers' ``initial_state``."""
    check_int("batch_size", batch_size, low=0)
    size = _history(layer.geometry) + layer.geometry.stride[0] - 1
    return layer.weight.detach().new_zeros((batch_size, layer.in_channels, size))


def _chunk(x: Any, channels: int, stride: int) -> Tensor:
    """A chunk as (N, C, T)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() not in (2, 3) or x.shape[1] != channels or (x.dim() == 3 and x.shape[2] < 1):
        raise ArgumentError(
            f"x must be (N, {channels}, T) with T of at least 1, or (N, {channels}) for one time step, got "
            f"{tuple(x.shape)}"
        )
    if x.dim() == 2 and stride > 1:
        raise ArgumentError(f"x must be (N, {channels}, T) with stride={stride}: a single time step may have no output")
    return x if x.dim() == 3 else x.unsqueeze(-1)


def _with_past(x: Tensor, state: Tensor | None, geometry: ConvGeometry) -> tuple[Tensor | None, Tensor]:
    """What the windows of a chunk's outputs cover, ``None`` where there is no output, and the state after the chunk.

    A state begins stride - 1 elements before the next output's window, so that its length tells how many elements are
    missing to that output: none of a whole stride's may be negative, however short the window is.
    """
    history, stride = _history(geometry), geometry.stride[0]
    longest = history + stride - 1
    if state is None:
        state = x.new_zeros((x.shape[0], x.shape[1], longest))
    elif not isinstance(state, Tensor):
        raise TypeError(f"state must be None or a tensor, got {type(state).__name__}")
    elif (
        state.dim() != 3
        or state.shape[:2] != x.shape[:2]
        or not history <= state.shape[2] <= longest
        or state.dtype != x.dtype
    ):
        sizes = f"{history}" if stride == 1 else f"{history} to {longest}"
        raise ArgumentError(
            f"state must have shape ({x.shape[0]}, {x.shape[1]}, {sizes}) and dtype {x.dtype}, got "
            f"{tuple(state.shape)} and {state.dtype}"
        )
    if longest == 0:
        return x, state
    joined = torch.cat([state, x], -1)
    outputs = (joined.shape[-1] - history) // stride
    # A copy, or the state of a long chunk would keep the chunk alive.
    after = joined.narrow(-1, outputs * stride, joined.shape[-1] - outputs * stride).clone()
    if outputs == 0:
        return None, after
    return joined.narrow(-1, stride - 1, (outputs - 1) * stride + history + 1), after


def _unpadded(geometry: ConvGeometry) -> ConvGeometry:
    return ConvGeometry(1, geometry.kernel_size, geometry.stride, geometry.dilation, ((0, 0),))


def _depthwise_chunk(layer: _DepthwiseConv, joined: Tensor) -> Tensor:
    fused = _parts.fused_name(layer.activation)
    geometry = _unpadded(layer.geometry)
    out = functional.depthwise_conv(joined, layer.weight, layer.bias, geometry, fused or "none", "auto")
    return out if fused is not None else layer.activation(out)  # type: ignore[misc]


def depthwise_step(layer: DepthwiseConv1d, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The work of :meth:`DepthwiseConv1d.step`."""
    _check_causal(layer)
    joined, state = _with_past(_chunk(x, layer.in_channels, layer.stride[0]), state, layer.geometry)
    out = _no_output(x, layer.out_channels) if joined is None else _depthwise_chunk(layer, joined)
    return (out if x.dim() == 3 else out.squeeze(-1)), state


def _no_output(x: Tensor, channels: int) -> Tensor:
    return x.new_empty((x.shape[0], channels, 0))


def separable_step(layer: DepthwiseSeparableConv1d, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The work of :meth:`DepthwiseSeparableConv1d.step`."""
    _check_causal(layer.depthwise)
    _check_norms(layer, "step")
    geometry: ConvGeometry = layer.depthwise.geometry
    chunk = _chunk(x, layer.in_channels, geometry.stride[0])
    if layer.order == "depthwise_first":
        joined, state = _with_past(chunk, state, geometry)
        if joined is None:
            return _no_output(x, layer.out_channels), state
        windows = joined
        out = _fused_chunk(layer, chunk, windows)
        if out is None:
            out = layer._composed(chunk, depthwise=lambda _: _depthwise_chunk(layer.depthwise, windows))
    else:
        after: list[Tensor] = []

        def depthwise(inner: Tensor) -> Tensor:
            joined, new = _with_past(inner, state, geometry)
            after.append(new)
            if joined is None:
                return _no_output(inner, layer.depthwise.out_channels)
            return _depthwise_chunk(layer.depthwise, joined)

        out = layer._composed(chunk, depthwise=depthwise)
        state = after[0]
    return (out if x.dim() == 3 else out.squeeze(-1)), state


def _fused_chunk(layer: DepthwiseSeparableConv1d, chunk: Tensor, joined: Tensor) -> Tensor | None:
    """A chunk's output from the fused operator, which the whole takes as well; ``None`` where it does not."""
    if layer.residual == "input":
        # The operator adds its input, so that it has to see what the whole sees: outputs for the past are dropped.
        whole = layer(joined) if _folding.fused_arguments(layer) is not None else None
        return None if whole is None else whole.narrow(-1, joined.shape[-1] - chunk.shape[-1], chunk.shape[-1])
    plan = None if torch.compiler.is_compiling() else layer._plan.current(layer)
    if plan is not None:
        return plan.run_unpadded(joined)
    fused = _folding.fused_arguments(layer)
    if fused is None:
        return None
    geometry = _unpadded(layer.depthwise.geometry)
    return functional.depthwise_separable_conv(joined, *fused.weights, geometry, *fused.options, "auto")


def is_plain_pointwise(module: nn.Module) -> bool:
    """Whether a pointwise factor is torch's own convolution, seen by no hook, which the native kernels can run."""
    if type(module).forward is not nn.Conv1d.forward or any(_folding.hooks_of(module)):
        return False
    return functional.packs(module.weight)  # type: ignore[arg-type]


def pointwise(conv: Any, x: Tensor) -> Tensor:
    """A pointwise convolution as a separable one whose depthwise factor is 1: its bits do not depend on the length."""
    if x.dtype != conv.weight.dtype or x.shape[1] != conv.in_channels:
        return conv(x)  # autocast, or an error of torch's
    ones = x.new_ones((conv.in_channels, 1, 1))
    return functional.depthwise_separable_conv(
        x, ones, conv.weight, None, conv.bias, _ONE_TAP, "none", "none", "none", "auto"
    )


def _check_norms(layer: Any, what: str) -> None:
    for name in ("inner_norm", "norm"):
        norm = getattr(layer, name, None)
        if norm is not None and norm.training and hasattr(norm, "running_mean"):
            raise ArgumentError(f"{what} needs {name} in evaluation mode: statistics of a batch mix its sequences")


def _check_ragged(depthwise: _DepthwiseConv) -> None:
    if depthwise.padding_mode != "zeros" or depthwise.geometry.padding is None:
        raise ArgumentError(
            "forward_ragged needs padding_mode='zeros' and a padding which does not depend on the length, got "
            f"padding={depthwise.padding!r} and padding_mode={depthwise.padding_mode!r}"
        )


def ragged(layer: Any, x: Tensor, lengths: Any, cu_seqlens: Any) -> Tensor:
    """The work of both layers' ``forward_ragged``."""
    depthwise = getattr(layer, "depthwise", layer)
    _check_ragged(depthwise)
    _check_norms(layer, "forward_ragged")
    if (lengths is None) == (cu_seqlens is None):
        raise ArgumentError("forward_ragged takes either lengths or cu_seqlens")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() != 3 or x.shape[1] != layer.in_channels:
        raise ArgumentError(f"x must have shape (N, {layer.in_channels}, L), got {tuple(x.shape)}")
    if lengths is not None:
        return _padded(layer, depthwise, x, _integers("lengths", lengths, x))
    return _packed(layer, depthwise, x, _integers("cu_seqlens", cu_seqlens, x))


def _integers(argument: str, values: Any, x: Tensor) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.tensor(list(values))
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ArgumentError(f"{argument} must be one axis of integers, got {tuple(tensor.shape)} of {tensor.dtype}")
    return tensor.to(x.device, torch.int64)


def _run(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    """The layer on ``x``, whose elements outside ``keep`` (N, L) are to be zero where the depthwise factor reads."""
    if getattr(layer, "order", "depthwise_first") == "depthwise_first":
        return layer(x)
    return layer._composed(x, depthwise=lambda inner: layer.depthwise(inner.where(keep[:, None], 0)))


def _padded(layer: Any, depthwise: _DepthwiseConv, x: Tensor, lengths: Tensor) -> Tensor:
    n, size = x.shape[0], x.shape[2]
    if lengths.shape[0] != n:
        raise ArgumentError(f"lengths must have one entry for each of {n} sequences, got {lengths.shape[0]}")
    if not torch.compiler.is_compiling() and n and not (1 <= int(lengths.min()) <= int(lengths.max()) <= size):
        raise ArgumentError(f"lengths must be within 1 and {size}, got {lengths.tolist()}")
    g = depthwise.geometry
    keep = torch.arange(size, device=x.device) < lengths[:, None]
    out = _run(layer, x.where(keep[:, None], 0), keep)
    low, high = g.pads((size,))[0]
    out_lengths = (lengths + (low + high - g.effective_kernel_size[0])) // g.stride[0] + 1
    return out.where((torch.arange(out.shape[-1], device=x.device) < out_lengths[:, None])[:, None], 0)


def _packed(layer: Any, depthwise: _DepthwiseConv, x: Tensor, starts: Tensor) -> Tensor:
    g, total = depthwise.geometry, x.shape[2]
    low, high = g.pads((total,))[0]
    if g.stride != (1,) or low < 0 or high < 0 or low + high != g.effective_kernel_size[0] - 1:
        raise ArgumentError(
            "cu_seqlens needs a layer whose output is as long as its input, got "
            f"stride={g.stride[0]} and padding={depthwise.padding!r}"
        )
    if x.shape[0] != 1:
        raise ArgumentError(f"x must have shape (1, {layer.in_channels}, total) with cu_seqlens, got {tuple(x.shape)}")
    if not torch.compiler.is_compiling():
        sound = len(starts) > 1 and int(starts[0]) == 0 and int(starts[-1]) == total
        if not (sound and bool((starts.diff() >= 0).all())):
            raise ArgumentError(f"cu_seqlens must rise from 0 to {total}, got {starts.tolist()}")
    # Zeros between neighbours, as many as a window reaches over an end.
    gap = max(low, high)
    index = torch.arange(total, device=x.device)
    place = index + gap * torch.bucketize(index, starts[1:], right=True)
    spread_size = total + gap * (starts.shape[0] - 2)
    spread = x.new_zeros((1, x.shape[1], spread_size)).index_copy(2, place, x)
    keep = torch.zeros((1, spread_size), dtype=torch.bool, device=x.device).index_fill(1, place, True)
    return _run(layer, spread, keep).index_select(2, place)
