"""What a layer must compute and move at the least, in closed formulas, and the time below which no kernel can get.

Norms and activations count as free: they ride on a convolution's loads and stores.
"""

from __future__ import annotations

import math

from dwsep.analysis.ceilings import Ceilings
from dwsep.bench.registry import Task

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


def macs(task: Task) -> int:
    """Counts the multiply-adds of a task, for the whole batch.

    Forward, per output pixel: C * taps for the depthwise factor, C * K for the pointwise one. The backward of a
    convolution takes two products of its size, one for the gradient of its input and one for that of its weights; where
    a separable layer keeps no depthwise output, its backward computes that once more. A training step of a depthwise
    layer thus takes 3 * C * taps per pixel, that of a separable one 3 * C * K + 4 * C * taps.

    Example:
        >>> from dwsep.bench.registry import plan
        >>> macs(plan("separable", names=["32-64"], batches=[1])[0]) == 112 * 112 * 32 * (9 + 64)
        True
    """
    case = task.case
    depthwise = case.channels * case.taps
    pointwise = case.channels * case.out_channels if case.kind == "separable" else 0
    forward = depthwise + pointwise
    recomputed = depthwise if case.kind == "separable" else 0
    backward = 2 * forward + recomputed
    pixels = case.batch * math.prod(case.out_spatial)
    return pixels * (forward + (backward if task.training else 0))


def network_macs(forward: int, training: bool) -> int:
    """Counts the multiply-adds of a whole network's task: a training step takes three times a forward pass.

    Args:
        forward: Of a forward pass, for the whole batch.
        training: Whether a training step is meant.

    Example:
        >>> network_macs(100, True)
        300
    """
    return 3 * forward if training else forward


def bytes_moved(task: Task) -> int:
    """Counts the bytes of a task, with every tensor read or written once per direction.

    Forward: x and the weights are read, y is written. Backward: x, the gradient of y and the weights are read, the
    gradients of x and of the weights are written. The depthwise output of a separable layer never reaches memory.

    Example:
        >>> from dwsep.bench.registry import plan
        >>> bytes_moved(plan("separable", names=["32-64"], batches=[1])[0]) == 4 * (112 * 112 * 96 + 32 * 9 + 64 * 32)
        True
    """
    case = task.case
    source = case.batch * case.channels * math.prod(case.spatial)
    result = case.batch * case.out_channels * math.prod(case.out_spatial)
    weights = case.channels * case.taps
    if case.kind == "separable":
        weights += case.channels * case.out_channels
    forward = source + weights + result
    backward = source + result + weights + source + weights if task.training else 0
    return ELEMENT_BYTES[task.dtype] * (forward + backward)


def intensity(task: Task) -> float:
    """Floating-point operations per byte moved, two to a multiply-add."""
    return 2 * macs(task) / bytes_moved(task)


def floor_seconds(task: Task, ceilings: Ceilings) -> float:
    """The larger of the time that the arithmetic and the time that the memory takes, in seconds."""
    return ceilings.floor_seconds(macs(task), bytes_moved(task), task.dtype)
