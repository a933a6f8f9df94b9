"""Bilinear resizing between convolutions, on kernels for channels last where a call is what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.ops._layout import is_channels_last
from dwsep.ops._library import native_status

_MODULES = (nn.Upsample, nn.UpsamplingBilinear2d)
_NAMES = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")


def resizes(target: Any) -> bool:
    """Whether a module or function is torch's interpolation, in whatever mode."""
    return target is F.interpolate or type(target) in _MODULES


def run(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``target``, which :func:`resizes`, returns for arguments."""
    if isinstance(target, nn.Module):
        module: Any = target
        if len(args) != 1 or kwargs:
            return target(*args, **kwargs)
        given = {name: getattr(module, name) for name in ("size", "scale_factor", "mode", "align_corners")}
        given |= {"input": args[0], "recompute_scale_factor": module.recompute_scale_factor}
    else:
        given = dict(zip(_NAMES, args, strict=False)) | kwargs
    found = _bilinear(**given) if set(given) <= set(_NAMES) and "input" in given else None
    return target(*args, **kwargs) if found is None else found


def _bilinear(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """The resized images, or ``None`` where these arguments are for torch."""
    if mode != "bilinear" or antialias or recompute_scale_factor or not native_status().loaded:
        return None
    x = input
    plain = type(x) is Tensor and x.dim() == 4 and x.dtype is torch.float32 and x.is_cpu and x.numel() > 0
    if not plain or not is_channels_last(x):
        return None
    if (size is None) == (scale_factor is None):
        return None
    given = size if size is not None else scale_factor
    pair = list(given) if isinstance(given, (list, tuple)) else [given, given]
    kinds = (int,) if size is not None else (int, float)
    if len(pair) != 2 or not all(type(value) in kinds and value > 0 for value in pair):
        return None
    scales: list[float] = []
    if size is None:
        scales = [float(value) for value in pair]
        pair = [int(length * value) for length, value in zip(x.shape[2:], scales, strict=True)]
        if min(pair) < 1:
            return None
    return torch.ops.dwsep.resize_bilinear(x, pair, bool(align_corners), scales)
