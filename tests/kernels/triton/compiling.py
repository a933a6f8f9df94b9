"""Compiles the Triton kernels for GPUs that need not be there, and reads what they use: a program of its own.

The test process runs the kernels in Triton's interpreter, which takes the place of its compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dwsep.kernels.triton import launch
from dwsep.kernels.triton.launch import Call
from dwsep.kernels.triton.shapes import shape_of

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# N, C, spatial, kernel, stride, dilation: one of each class of shapes that the blocks are chosen by.
GEOMETRIES = (
    (8, 128, (56, 56), (3, 3), 1, 1),
    (8, 96, (112, 112), (3, 3), 2, 1),
    (8, 24, (14, 14), (5, 5), 1, 1),
    (8, 240, (28, 28), (5, 5), 2, 1),
    (8, 96, (56, 56), (7, 7), 1, 1),
    (8, 384, (14, 14), (7, 7), 1, 1),
    (8, 128, (28, 28), (31, 31), 1, 1),
    (8, 256, (28, 28), (3, 3), 1, 2),
    (8, 256, (33, 33), (3, 3), 1, 6),
    (8, 64, (33, 33), (3, 3), 4, 6),
    (1, 1536, (4096,), (4,), 1, 1),
    (8, 768, (4096,), (31,), 1, 1),
)


def calls(geometry: tuple, element_size: int) -> Iterator[tuple[str, Call, int]]:
    """Every launch of a problem's forward pass and gradients: what it is, the call and how many tensors it takes."""
    batch, channels, spatial, kernel, stride, dilation = geometry
    pads = [dilation * (k - 1) for k in kernel]
    shape, _ = shape_of(
        (batch, channels, *spatial),
        (channels, 1, *kernel),
        (stride,) * len(kernel),
        tuple(side for pad in pads for side in (pad - pad // 2, pad // 2)),
        (dilation,) * len(kernel),
    )
    for layout in ("last", "planes"):
        correlate = getattr(launch, f"correlate_{layout}")
        yield f"{layout} forward", correlate(shape, False, element_size, True, "silu"), 5
        yield f"{layout} input gradient", correlate(shape, True, element_size), 5
        sums, chunks = getattr(launch, f"weight_sums_{layout}")(shape, element_size, True)
        yield f"{layout} weight gradient", sums, 3
        yield f"{layout} sums of chunks", launch.add_chunks(chunks, shape.taps, channels, True), 3


def tensor_types(what: str, dtype: torch.dtype) -> list[str]:
    """Types of a call's tensors, in their order."""
    element = TYPES[dtype]
    if what.endswith("chunks"):
        return ["fp32", element, element]
    if what.endswith("weight gradient"):
        return [element, element, "fp32"]
    return [element, "fp32" if what.startswith("last") else element, element, element, element]


def compile_call(call: Call, types: list[str], arch: int) -> dict[str, Any]:
    """What the kernel of a call uses, compiled as for its launches on such a GPU."""
    names = call.kernel.arg_names
    values = dict(zip(names[len(types) :], call.arguments, strict=True))
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    for position, parameter in enumerate(call.kernel.params):
        if position < len(types):
            signature[parameter.name] = "*" + types[position]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(position,)] = values[parameter.name]
        else:
            signature[parameter.name] = "fp32" if isinstance(values[parameter.name], float) else "i32"
    source = ASTSource(call.kernel, signature, constants, attributes)
    options = {"num_warps": call.warps, "num_stages": call.stages}
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=options)
    found = usage(compiled.asm["cubin"])
    for registers in (found["REG"], launch.MOST_REGISTERS):  # as Call does
        if found["STACK"] + found["LOCAL"]:
            compiled = triton.compile(source, target=target, options={**options, "maxnreg": registers})
            found = usage(compiled.asm["cubin"])
    return {
        "arch": arch,
        "registers": found["REG"],
        "shared": compiled.metadata.shared,
        "spills": found["STACK"] + found["LOCAL"],
        "ptx": ".target sm_" in compiled.asm["ptx"],
    }


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a cubin, in bytes but for the registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def main() -> None:
    """Prints a JSON list with what each kernel uses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, action="append", required=True)
    parser.add_argument("--dtype", action="append", required=True)
    parser.add_argument("--geometry", type=int, action="append", help="positions in GEOMETRIES; default: all")
    arguments = parser.parse_args()
    chosen = range(len(GEOMETRIES)) if arguments.geometry is None else arguments.geometry
    for position in chosen:
        for name in arguments.dtype:
            dtype = getattr(torch, name)
            for what, call, _ in calls(GEOMETRIES[position], dtype.itemsize):
                for arch in arguments.arch:
                    record = {"geometry": GEOMETRIES[position], "kernel": what, "dtype": name}
                    record |= compile_call(call, tensor_types(what, dtype), arch)
                    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
