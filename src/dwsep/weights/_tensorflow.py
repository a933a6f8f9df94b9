"""A TensorFlow layer's arrays as torch lays them out: what Keras's files and TensorFlow.js's have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def depthwise(kernel: np.ndarray) -> Tensor:
    """A depthwise kernel (*taps, C, M) as (C * M, 1, *taps): output c * M + m is of input c in both worlds."""
    tensor = torch.from_numpy(np.ascontiguousarray(kernel))
    axes = tensor.dim() - 2
    return tensor.permute(axes, axes + 1, *range(axes)).reshape(-1, 1, *tensor.shape[:axes]).clone()


def dense(kernel: np.ndarray) -> Tensor:
    """A kernel (*taps, in, out) as (out, in, *taps); of a linear layer, (in, out) as (out, in). Transposed ones alike,
    whose kernels are (*taps, out, in) there and (in, out, *taps) here.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(kernel))
    axes = tensor.dim() - 2
    return tensor.permute(axes + 1, axes, *range(axes)).clone()


def layer_tensors(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """A layer's tensors under the names of ours.

    Args:
        kind: the layer's class, such as "SeparableConv2D"; empty if unknown.
        arrays: its arrays by Keras's names: "depthwise_kernel", "kernel", "gamma" and so on.
    """
    tensors: dict[str, Tensor] = {}
    separable = "pointwise_kernel" in arrays
    for name, array in arrays.items():
        if name in _NORM:
            tensors[_NORM[name]] = torch.from_numpy(np.array(array))
        elif name == "pointwise_kernel":
            tensors["pointwise.weight"] = dense(array)
        elif name == "depthwise_kernel" or (name == "kernel" and kind.startswith("DepthwiseConv")):
            tensors["depthwise.weight" if separable else "weight"] = depthwise(array)
        elif name == "kernel" and array.ndim >= 2:
            tensors["weight"] = dense(array)
        elif name == "bias":
            tensors["pointwise.bias" if separable else "bias"] = torch.from_numpy(np.array(array))
        else:
            tensors[name] = torch.from_numpy(np.array(array))  # reported as unused
    return tensors


def kind_of(kind: str, arrays: dict[str, np.ndarray]) -> str:
    """What a layer is, by its class if that is known and by its arrays' names; empty for what is neither."""
    if "pointwise_kernel" in arrays:
        return "separable convolution"
    if kind.startswith("DepthwiseConv") or "depthwise_kernel" in arrays:
        return "depthwise convolution"
    if "moving_mean" in arrays:
        return "batch norm"
    if "kernel" not in arrays:
        return ""
    return "linear layer" if arrays["kernel"].ndim == 2 else "convolution"


def array_names(kind: str, config: dict[str, Any], count: int) -> list[str]:
    """Names of a layer's ``count`` arrays in the order in which Keras 3 numbers them.

    Without a configuration the count tells whether there is a bias, but not which of a norm's factors is missing.
    """
    gamma = ["gamma"] if config.get("scale", True) else []
    beta = ["beta"] if config.get("center", True) else []
    if kind.startswith("SeparableConv"):
        names = ["depthwise_kernel", "pointwise_kernel", "bias"][: max(count, 2)]
    elif kind == "BatchNormalization":
        names = [*gamma, *beta, "moving_mean", "moving_variance"]
    elif kind.endswith("Normalization"):
        names = [*gamma, *beta]
    else:
        names = ["kernel", "bias"][: max(count, 1)]
    return names if len(names) == count else [f"variable{index}" for index in range(count)]
