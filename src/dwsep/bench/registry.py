"""The layers that are measured, and what is measured of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dwsep.errors import unknown_name
from dwsep.geometry import ConvGeometry

SETS = ("separable", "depthwise", "short")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A layer and its input.

    Attributes:
        kind: "separable" (depthwise, then pointwise), "depthwise", or "short" (depthwise and causal along a sequence).
        name: Unique name within the registry, the batch left out.
        batch: N of the input (N, C, *spatial).
        channels: C, input channels; a depthwise layer has as many outputs.
        out_channels: K, output channels.
        spatial: Input size per axis, in elements.
        kernel: Taps per axis.
        stride: Step of the window, in elements, the same along each axis.
        dilation: Distance of neighbouring taps, in elements, the same along each axis.
    """

    kind: str
    name: str
    batch: int
    channels: int
    out_channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    dilation: int = 1

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.spatial)

    @property
    def taps(self) -> int:
        """Weights of one channel's kernel."""
        return math.prod(self.kernel)

    @property
    def geometry(self) -> ConvGeometry:
        """Geometry of the depthwise factor."""
        return ConvGeometry.make(self.ndim, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def padding(self) -> str:
        """ "same", or "causal" for a short convolution."""
        return "causal" if self.kind == "short" else "same"

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output size per axis, in elements."""
        return self.geometry.output_size(self.spatial)


@dataclass(frozen=True)
class Task:
    """One comparison: a case, what surrounds its convolutions, and whether it is trained.

    Attributes:
        case: The layer.
        variant: "bare" (no norm, no activation), "norm" (batch norm and ReLU after each convolution, in evaluation),
            "inner_relu" (ReLU between the two) or "silu" (SiLU after the convolution).
        training: Whether forward and backward are measured, or the forward alone.
        dtype: "float32" or "bfloat16".
    """

    case: Case
    variant: str = "bare"
    training: bool = False
    dtype: str = "float32"

    @property
    def mode(self) -> str:
        """ "training" or "inference"."""
        return "training" if self.training else "inference"

    @property
    def key(self) -> str:
        """Tells the task from every other one."""
        case = self.case
        return f"{case.kind} {case.name} batch {case.batch} {self.variant} {self.mode} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """The task as JSON can hold it."""
        return asdict(self)

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Task:
        """The inverse of :meth:`to_json`."""
        case = dict(entry["case"])
        for axis_wise in ("spatial", "kernel"):
            case[axis_wise] = tuple(case[axis_wise])
        return Task(Case(**case), entry["variant"], entry["training"], entry["dtype"])


def _separable(channels: int, out_channels: int, size: int, stride: int = 1, dilation: int = 1) -> Case:
    suffix = (f"s{stride}" if stride > 1 else "") + (f"d{dilation}" if dilation > 1 else "")
    name = f"{channels}-{out_channels}@{size}{suffix}"
    return Case("separable", name, 1, channels, out_channels, (size, size), (3, 3), stride, dilation)


def _depthwise(
    batch: int, channels: int, spatial: tuple[int, ...], kernel: tuple[int, ...], stride: int = 1, dilation: int = 1
) -> Case:
    suffix = (f"s{stride}" if stride > 1 else "") + (f"d{dilation}" if dilation > 1 else "")
    size = str(spatial[0]) if len(set(spatial)) == 1 else "x".join(map(str, spatial))
    taps = f"k{kernel[0]}" if len(kernel) == 1 else "x".join(map(str, kernel))
    name = f"{channels}@{size}-{taps}{suffix}"
    return Case("depthwise", name, batch, channels, channels, spatial, kernel, stride, dilation)


# MobileNet's layers, Xception's middle flow, and the two dilations of DeepLab's encoders.
SEPARABLE = (
    _separable(32, 64, 112),
    _separable(64, 128, 112, stride=2),
    _separable(128, 128, 56),
    _separable(128, 256, 56, stride=2),
    _separable(256, 256, 28),
    _separable(512, 512, 14),
    _separable(1024, 1024, 7),
    _separable(728, 728, 19),
    _separable(256, 256, 33, dilation=6),
    _separable(320, 256, 33, dilation=12),
)
# What kernel size, dilation, stride and rank do to the depthwise convolution alone.
DEPTHWISE = (
    _depthwise(8, 256, (28, 28), (3, 3)),
    _depthwise(8, 256, (28, 28), (5, 5)),
    _depthwise(8, 256, (28, 28), (7, 7)),
    _depthwise(8, 256, (28, 28), (3, 3), dilation=2),
    _depthwise(8, 256, (28, 28), (3, 3), stride=2),
    _depthwise(8, 64, (8, 28, 28), (3, 3, 3)),
    _depthwise(4, 768, (2048,), (4,)),
    _depthwise(4, 768, (2048,), (31,)),
)
# The causal convolutions in front of state-space and linear-attention layers.
SHORT = tuple(Case("short", f"768@2048-causal{taps}", 1, 768, 768, (2048,), (taps,)) for taps in (2, 3, 4))


def variants(kind: str, training: bool) -> tuple[str, ...]:
    """Names the variants in which a kind of layer is measured."""
    if kind == "short":
        return ("silu",)
    if kind == "depthwise":
        return ("bare",)
    return ("bare", "inner_relu") if training else ("bare", "norm")


def _batches(case: Case, training: bool) -> tuple[int, ...]:
    if case.kind == "depthwise":
        return (case.batch,)
    if case.kind == "short":
        return (1, 4)
    return (1, 8, 16) if training else (1, 8)


def plan(
    which: str = "all",
    *,
    training: bool = False,
    dtype: str = "float32",
    batches: Sequence[int] = (),
    names: Sequence[str] = (),
) -> list[Task]:
    """Lists the comparisons of a run.

    Args:
        which: "separable", "depthwise", "short" or "all".
        training: Whether forward and backward are measured, or the forward alone.
        dtype: "float32" or "bfloat16".
        batches: Batch sizes; empty for those registered with each case.
        names: Names of cases, or parts of names; empty for all.

    Returns:
        The tasks, the cases of one variant and batch next to each other.

    Raises:
        ArgumentError: An unknown set, dtype or case.

    Example:
        >>> [task.key for task in plan("separable", names=["32-64"], batches=[4])]
        ['separable 32-64@112 batch 4 bare inference float32', 'separable 32-64@112 batch 4 norm inference float32']
    """
    if which not in (*SETS, "all"):
        raise unknown_name("set", which, (*SETS, "all"))
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    cases = [case for case in SEPARABLE + DEPTHWISE + SHORT if which in ("all", case.kind)]
    for name in names:
        if not any(name in case.name for case in cases):
            raise unknown_name("case", name, tuple(case.name for case in cases))
    cases = [case for case in cases if not names or any(name in case.name for name in names)]
    return list(_tasks(cases, training, dtype, batches))


def _tasks(cases: Sequence[Case], training: bool, dtype: str, batches: Sequence[int]) -> Iterator[Task]:
    for kind in SETS:
        chosen = [case for case in cases if case.kind == kind]
        for variant in variants(kind, training):
            sizes = sorted({size for case in chosen for size in batches or _batches(case, training)})
            for size in sizes:
                for case in chosen:
                    if size in (batches or _batches(case, training)):
                        yield Task(replace(case, batch=size), variant, training, dtype)
