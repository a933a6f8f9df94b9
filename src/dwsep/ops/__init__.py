"""The operators ``torch.ops.dwsep.*``, one file each. Importing defines them, then loads the native library."""

from dwsep.ops import (
    dense_stage,
    depthwise_conv,
    depthwise_stage,
    expanded_stage,
    inference_program,
    mixed_stage,
    pointwise_conv_packed,
    pointwise_stage,
    resize,
    separable_conv,
    separable_conv_packed,
    stage_gate,
    stage_norm,
    stage_output,
    training_program,
)
from dwsep.ops._library import NativeStatus, native_status, release_memory

native_status()

__all__ = [
    "NativeStatus",
    "dense_stage",
    "depthwise_conv",
    "depthwise_stage",
    "expanded_stage",
    "inference_program",
    "mixed_stage",
    "native_status",
    "pointwise_conv_packed",
    "pointwise_stage",
    "release_memory",
    "resize",
    "separable_conv",
    "separable_conv_packed",
    "stage_gate",
    "stage_norm",
    "stage_output",
    "training_program",
]
