"""Compiles the stages' kernels for GPUs that need not be there, as ``compiling.py`` does those of layers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import torch

from dwsep.kernels.triton import pointwise_launch as launch
from dwsep.kernels.triton import stage_launch
from dwsep.kernels.triton.launch import Call
from dwsep.kernels.triton.pointwise_launch import PointwiseProblem
from dwsep.kernels.triton.stage_launch import TensorProblem
from tests.kernels.triton.compiling import TYPES, compile_call

# Channels, outputs, size of the image and activation of the input, at batch 128.
SHAPES = (
    (32, 16, 112, "relu6"),  # MobileNetV2
    (16, 96, 112, "none"),
    (24, 144, 56, "none"),
    (144, 24, 56, "relu6"),
    (192, 64, 14, "relu6"),
    (64, 384, 14, "none"),
    (576, 96, 14, "relu6"),
    (160, 960, 7, "none"),
    (320, 1280, 7, "none"),
    (40, 240, 28, "none"),  # EfficientNet-B0
    (672, 112, 14, "silu"),
    (1152, 192, 7, "silu"),
    (96, 384, 56, "none"),  # ConvNeXt-tiny
    (1536, 384, 14, "gelu"),
    (3072, 768, 7, "gelu"),
)


def calls(
    shape: tuple, dtype: torch.dtype, arch: int, precision: str = "tf32"
) -> Iterator[tuple[str, Call, list[str]]]:
    """Every launch of a shape's forward pass and gradients: what it is, the call and the types of its tensors."""
    channels, outputs, size, activation = shape
    element = TYPES[dtype]
    precision = precision if dtype == torch.float32 and arch >= 80 else "ieee"
    problem = PointwiseProblem(
        128 * size * size, channels, outputs, dtype.itemsize, activation, activation != "none", precision,
        dtype == torch.bfloat16 and arch < 80, True, True,
    )  # fmt: skip
    call, chunks = launch.forward(problem)
    yield "forward", call, [element, element, "fp32", "fp32", element, element, "fp64"]
    yield "sums", launch.add_partials(chunks, 2 * outputs, 2 * outputs), ["fp64", "fp64", "fp64"]
    load = [element, element, "fp32", element, "fp32", "fp32"]
    call, _ = launch.input_gradient(launch.without_weight(problem))
    yield "input gradient", call, [*load, element, element, "fp64"]
    call, _ = launch.weight_gradient(problem)
    yield "weight gradient", call, [*load, "fp32"]
    both = launch.both_gradients(problem)
    if both is not None:
        yield "both gradients", both[0], [*load, element, element, "fp64", "fp32"]


def tensor_calls(shape: tuple, dtype: torch.dtype) -> Iterator[tuple[str, Call, list[str]]]:
    """Likewise what norms, outputs and gates launch for the input."""
    channels, _, size, activation = shape
    element = TYPES[dtype]
    flat = TensorProblem(1, 128 * size * size, channels, activation, True)
    images = TensorProblem(128, size * size, channels, activation, True)
    pending = [element, "fp32", "fp32"]
    sums, chunks = stage_launch.channel_sums(flat)
    yield "sums of a tensor", sums, [element, "fp64"]
    yield "sums of chunks", launch.add_partials(chunks, 2 * channels, 2 * channels), ["fp64", "fp64", "fp64"]
    yield "corrected", stage_launch.corrected(flat), [element, element, "fp32", element]
    yield "output", stage_launch.output(flat, True), [*pending, element, element]
    yield "output gradient", stage_launch.output_gradient(flat)[0], [element, *pending, element, "fp64"]
    yield "means", stage_launch.image_sums(images, False), [*pending, element, element]
    yield "gate gradient", stage_launch.image_sums(images, True), [*pending, element, element]
    yield "gated", stage_launch.gated(images), [*pending, element, element]
    squeeze, _ = stage_launch.squeeze_gradient(images, True, True)
    yield "squeeze gradient", squeeze, [element, element, element, *pending, element, "fp64"]
    statistics = stage_launch.statistics(channels, 128 * size * size, 1e-5, 0.1, (True,) * 4)
    yield "statistics", statistics, ["fp64", *["fp32"] * 8]
    yield "correction", stage_launch.correction(channels, 128, True), ["fp64", *["fp32"] * 6]


def main() -> None:
    """Prints a JSON list with what each kernel uses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, action="append", required=True)
    parser.add_argument("--dtype", action="append", required=True)
    parser.add_argument("--shape", type=int, action="append", help="positions in SHAPES; default: all")
    parser.add_argument("--precision", default="tf32", help="of float32's products")
    parser.add_argument("--tensors", action="store_true", help="norms, outputs and gates rather than products")
    arguments = parser.parse_args()
    for position in range(len(SHAPES)) if arguments.shape is None else arguments.shape:
        for name in arguments.dtype:
            for arch in arguments.arch:
                dtype = getattr(torch, name)
                shape = SHAPES[position]
                of_products = calls(shape, dtype, arch, arguments.precision)
                for what, call, types in tensor_calls(shape, dtype) if arguments.tensors else of_products:
                    record = {"geometry": shape, "kernel": what, "dtype": name}
                    record |= compile_call(call, types, arch)
                    record["blocks"] = [call.grid[0], call.warps, *call.arguments[-3:]]
                    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
