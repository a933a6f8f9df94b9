"""What the stage operators share: their outputs' layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels innermost and dense, copied if need be, whatever its sizes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def empty_channels_last(x: Tensor, channels: int, spatial: Sequence[int]) -> Tensor:
    """An uninitialised (N, channels, *spatial) tensor, channels innermost."""
    return x.new_empty((x.shape[0], *spatial, channels)).movedim(-1, 1)


def gradients(
    found: Sequence[Tensor | None] | None,
    x: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    has_bias: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    """A stage's four gradients in their layouts, empty where none is wanted; uninitialised for ``found=None``."""
    wants_x, wants_weight = mask
    shapes: list[Tensor | None] = [
        empty_channels_last(x, x.shape[1], x.shape[2:]) if wants_x else None,
        x.new_empty((2, x.shape[1]), dtype=torch.float64) if wants_x and scale is not None else None,
        weight.new_empty(weight.shape) if wants_weight else None,
        weight.new_empty(weight.shape[0]) if wants_weight and has_bias else None,
    ]
    result = []
    for position, shape in enumerate(shapes):
        if shape is None:
            result.append(x.new_empty(0))
            continue
        grad = None if found is None else found[position]
        if grad is None:
            result.append(shape)
        else:
            result.append(channels_last(grad) if position == 0 else grad.contiguous())
    return tuple(result)
