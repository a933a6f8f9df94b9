"""``dwsep::resize_bilinear`` and its backward: bilinear resizing of images in channels last, as torch computes it.

``scales`` is empty, or holds the factors of height and width by which a size was made: where an image's edges stay in
place, ``align_corners=False``, torch takes them for the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last

NAME = "resize_bilinear"
LIBRARY.define(f"{NAME}(Tensor x, int[] size, bool align_corners, float[] scales) -> Tensor")
LIBRARY.define(f"{NAME}_backward(Tensor grad, int[] size, bool align_corners, float[] scales) -> Tensor")


def _scales(scales: Sequence[float]) -> tuple[float | None, float | None]:
    return (scales[0], scales[1]) if scales else (None, None)


def _forward(x: Tensor, size: Sequence[int], align_corners: bool, scales: Sequence[float]) -> Tensor:
    return channels_last(torch.ops.aten.upsample_bilinear2d.default(x, size, align_corners, *_scales(scales)))


def _backward(grad: Tensor, size: Sequence[int], align_corners: bool, scales: Sequence[float]) -> Tensor:
    sizes = [*grad.shape[:2], *size]
    found = torch.ops.aten.upsample_bilinear2d_backward.default(
        grad, grad.shape[2:], sizes, align_corners, *_scales(scales)
    )
    return channels_last(found)


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")


def _fake(x: Tensor, size: Sequence[int], align_corners: bool, scales: Sequence[float]) -> Tensor:
    return empty_channels_last(x, x.shape[1], size)


torch.library.register_fake(f"dwsep::{NAME}", _fake, lib=LIBRARY)
torch.library.register_fake(f"dwsep::{NAME}_backward", _fake, lib=LIBRARY)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size, ctx.rest = list(inputs[0].shape[2:]), inputs[2:]


# Either is linear, and the other one is its transpose.
def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.dwsep.resize_bilinear_backward(grad, ctx.size, *ctx.rest), None, None, None


def _second_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.dwsep.resize_bilinear(grad, ctx.size, *ctx.rest), None, None, None


torch.library.register_autograd(f"dwsep::{NAME}", _gradient, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd(f"dwsep::{NAME}_backward", _second_gradient, setup_context=_setup, lib=LIBRARY)
