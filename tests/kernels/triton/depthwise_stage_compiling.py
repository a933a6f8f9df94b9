"""Compiles the kernels of the depthwise stages and of the separable convolution, as ``compiling`` does the others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import NamedTuple

import torch

from dwsep.kernels.triton import depthwise_stage_configs as tables
from dwsep.kernels.triton import depthwise_stage_launch as launch
from dwsep.kernels.triton import separable_launch
from dwsep.kernels.triton.launch import Call
from dwsep.kernels.triton.shapes import shape_of
from tests.kernels.triton.compiling import TYPES, compile_call


class Layer(NamedTuple):
    """A depthwise layer: what it reads is pending with ``activation``; a pointwise one to ``outputs`` follows."""

    batch: int
    channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    dilation: int
    activation: str
    outputs: int
    bias: bool = False


LAYERS = (
    Layer(128, 32, (112, 112), (3, 3), 1, 1, "relu6", 16),  # MobileNetV2
    Layer(128, 96, (112, 112), (3, 3), 2, 1, "relu6", 24),
    Layer(8, 144, (56, 56), (3, 3), 1, 1, "relu6", 24),
    Layer(128, 960, (7, 7), (3, 3), 1, 1, "relu6", 320),
    Layer(128, 240, (28, 28), (3, 3), 2, 1, "silu", 80),  # EfficientNet-B0
    Layer(128, 144, (56, 56), (5, 5), 2, 1, "silu", 40),
    Layer(8, 672, (14, 14), (5, 5), 1, 1, "silu", 112),
    Layer(128, 120, (28, 28), (5, 5), 1, 1, "relu", 40),  # MobileNetV3
    Layer(128, 96, (56, 56), (7, 7), 1, 1, "none", 96, True),  # ConvNeXt
    Layer(8, 256, (33, 33), (3, 3), 1, 6, "relu", 256),  # DeepLab
    Layer(8, 304, (129, 129), (3, 3), 1, 1, "relu", 256),
    Layer(16, 64, (33, 33), (3, 3), 4, 6, "gelu", 64),
    Layer(1, 256, (4096,), (4,), 1, 1, "silu", 256, True),
    Layer(8, 256, (1000,), (31,), 1, 1, "silu", 256),
)


def calls(layer: Layer, dtype: torch.dtype) -> Iterator[tuple[str, Call, list[str]]]:
    """Every launch of a layer: what it is, the call and the types of its tensors."""
    size, element = dtype.itemsize, TYPES[dtype]
    pads = [layer.dilation * (k - 1) for k in layer.kernel]
    shape, _ = shape_of(
        (layer.batch, layer.channels, *layer.spatial),
        (layer.channels, 1, *layer.kernel),
        (layer.stride,) * len(layer.kernel),
        tuple(side for pad in pads for side in (pad - pad // 2, pad // 2)),
        (layer.dilation,) * len(layer.kernel),
    )
    affine = layer.activation != "none"
    loads = affine and tables.activates_while_loading(shape, size, layer.activation)
    activation = layer.activation if loads else "none"
    forward, chunks = launch.stage(shape, size, layer.bias, loads, activation)
    yield "forward", forward, [element, "fp32", "fp32", "fp32", "fp32", element, "fp32"]
    yield "statistics", launch.add_statistics(chunks, layer.channels), ["fp32", "fp64"]
    if shape.taps <= tables.MOST_BACKWARD_TAPS:
        backward, chunks, classes = launch.stage_backward(
            shape, size, affine, affine, layer.activation, True, True, layer.bias
        )
        yield "backward", backward, [element, element, "fp32", element, *["fp32"] * 3, element, "fp32", "fp32"]
        add = launch.add_gradients(chunks, classes, shape, True, layer.bias, affine)
        yield "gradients", add, ["fp32", "fp32", "fp32", "fp32", "fp64"]
    if separable_launch.pays(shape, layer.outputs):
        options = layer.bias, True, layer.activation, "relu", "none", "tf32" if dtype == torch.float32 else "ieee"
        yield "separable", separable_launch.separable_call(shape, layer.outputs, *options), [element] * 6


def main() -> None:
    """Prints a JSON list with what each kernel uses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--layer", type=int, action="append", help="positions in LAYERS; default: all")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    for position in range(len(LAYERS)) if arguments.layer is None else arguments.layer:
        for what, call, types in calls(LAYERS[position], dtype):
            if what == "separable" and arguments.arch < 80:
                continue  # it does not run there
            record = {"geometry": LAYERS[position], "kernel": what, "dtype": arguments.dtype}
            record |= compile_call(call, types, arguments.arch)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
