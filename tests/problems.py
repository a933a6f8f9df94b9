"""Recorded convolution problems as operator arguments, and the comparison every kernel has to pass."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHAPES = Path(__file__).parent / "data" / "shapes"


@dataclass(frozen=True)
class Problem:
    """A depthwise problem; ``out_channels`` is that of a pointwise factor behind it."""

    name: str
    batch: int
    channels: int
    multiplier: int
    out_channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]  # flat, (low, high) per axis

    @property
    def macs(self) -> int:
        """Rough cost of the problem with its pointwise factor, to leave out of a sample what takes seconds."""
        pixels = self.batch
        for size in self.spatial:
            pixels *= size
        taps = 1
        for size in self.kernel:
            taps *= size
        return pixels * self.channels * self.multiplier * (taps + self.out_channels)

    def tensors(self, draw, channels_last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, depthwise weight, pointwise weight and both biases, elements from ``draw(shape)``."""
        inner, ones = self.channels * self.multiplier, (1,) * len(self.spatial)
        x = draw((self.batch, self.channels, *self.spatial))
        if channels_last:
            x = last(x)
        return (
            x,
            draw((inner, 1, *self.kernel)),
            draw((self.out_channels, inner, *ones)),
            draw((inner,)),
            draw((self.out_channels,)),
        )

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        pads = zip(self.padding[0::2], self.padding[1::2], strict=True)
        axes = zip(self.spatial, pads, self.kernel, self.dilation, self.stride, strict=True)
        return tuple((n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, pad, k, d, s in axes)

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """stride, padding, dilation as the operators take them."""
        return list(self.stride), list(self.padding), list(self.dilation)


def _as_depthwise(record: dict, rng: random.Random) -> Problem:
    groups = record["groups"]
    if groups == 1:  # recorded dense: regrouped as depthwise
        channels, multiplier = record["in_channels"], 1
    else:
        channels, multiplier = groups, max(1, record["out_channels"] // groups)
    axes = range(len(record["spatial"]))
    if record["spatial"][0] == 1 and record["kernel_size"][0] == 1 and record["padding"][0] == [0, 0]:
        axes = axes[1:]  # a problem of one axis less, written with a leading 1
    pick = lambda key: tuple(record[key][axis] for axis in axes)  # noqa: E731
    return Problem(
        f"{record['source']}/{record['name']}",
        record["n"],
        channels,
        multiplier,
        rng.choice((1, 3, 8, 17, 24, 40)),
        pick("spatial"),
        pick("kernel_size"),
        pick("stride"),
        pick("dilation"),
        tuple(side for axis in axes for side in record["padding"][axis]),
    )


@cache
def recorded() -> tuple[Problem, ...]:
    """All recorded problems."""
    rng = random.Random(0)
    lines = [line for name in ("networks", "depthwise", "dilated") for line in _lines(f"{name}.jsonl")]
    return tuple(_as_depthwise(json.loads(line), rng) for line in lines)


def _lines(name: str) -> Iterator[str]:
    yield from (SHAPES / name).read_text().splitlines()


def sample(count: int, seed: int, largest_macs: int = 20_000_000) -> list[Problem]:
    """``count`` problems, an equal share of them from each file so that none drowns the others."""
    rng = random.Random(seed)
    small = [problem for problem in recorded() if problem.macs <= largest_macs]
    kinds: dict[tuple, list[Problem]] = {}
    for problem in small:
        kind = (len(problem.spatial), max(problem.dilation) > 1, max(problem.stride) > 1, min(problem.padding) < 0)
        kinds.setdefault(kind, []).append(problem)
    for problems in kinds.values():
        rng.shuffle(problems)
    chosen: list[Problem] = []
    while len(chosen) < count:
        chosen += [problems.pop() for problems in kinds.values() if problems]
    return chosen[:count]


def small_integers(generator: torch.Generator, dtype: torch.dtype = torch.float32, top: int = 4):
    """Draws integers from -top to top: their sums of products are exact in any order.

    bfloat16 holds integers to 256 only, and a sum between two factors may be rounded to it: there they are -1, 0 and 1.
    """
    top = top if dtype == torch.float32 else 1
    return lambda shape: torch.randint(-top, top + 1, shape, generator=generator).to(dtype)


def last(x: Tensor) -> Tensor:
    """``x`` with its channels innermost and dense, whatever its sizes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def integers(*shape: int, top: int = 2) -> Tensor:
    """Float32 integers from -top to top, from torch's global random state."""
    return torch.randint(-top, top + 1, shape).float()


def exact(result: Tensor, expected: Tensor) -> bool:
    """Whether ``result`` is the float64 ``expected``, whose elements are integers, rounded once to its own type."""
    assert expected.numel() == 0 or expected.abs().max() < 2**24, "float32 need not hold these integers"
    return torch.equal(result, expected.float().to(result.dtype))


def normal(generator: torch.Generator):
    """Draws standard normal float32 numbers."""
    return lambda shape: torch.randn(shape, generator=generator)


def double(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors in float64."""
    return tuple(tensor.double() for tensor in tensors)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """With ``count`` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_float64(call: Callable[..., Any], tensors: tuple[Tensor, ...], *options: Any) -> Any:
    """``call`` on the tensors in float64 and the options.

    On one thread: the problems are small, and where other processes use the cores too, as where tests run in parallel,
    threads that wait for each other take ten times as long.
    """
    with threads(1):
        return call(*double(tensors), *options)
