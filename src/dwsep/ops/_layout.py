"""Memory formats of outputs: the one rule which references, fake kernels and native kernels follow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the strides of ``x`` (N, C, *spatial) order its axes as channels last does.

    As in torch, layouts which are both (one channel or one pixel, densely packed) count as contiguous. Unlike in
    torch, three axes have a channels-last order too: (N, C, L) with C innermost.
    """
    strides, sizes = x.stride(), x.shape
    if strides[1] == 0:
        return False
    smallest = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        if sizes[axis] == 0 or strides[axis] < smallest:
            return False
        if axis == 0 and smallest == strides[1]:
            return False
        smallest = strides[axis] * max(sizes[axis], 1)
    return True


def empty_output(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """An uninitialised (N, C, *spatial) tensor of ``sizes`` in the layout that ``x`` has."""
    if not is_channels_last(x):
        return x.new_empty(sizes)
    batch, channels, *spatial = sizes
    order = (0, x.dim() - 1, *range(1, x.dim() - 1))
    return x.new_empty((batch, *spatial, channels)).permute(order)


def in_layout_of(x: Tensor, out: Tensor) -> Tensor:
    """``out``, copied if need be, in the layout that ``x`` has."""
    if not is_channels_last(x):
        return out.contiguous()
    last = (0, *range(2, out.dim()), 1)
    return out.permute(last).contiguous().permute((0, out.dim() - 1, *range(1, out.dim() - 1)))
