"""Compares a kernel with float64 arithmetic that PyTorch does, on problems that take a second in all.

``python -m dwsep.cli._selftest BACKEND`` prints the outcome as JSON, with ``time`` in the backend's place what a layer
takes; ``dwsep doctor`` runs it so for each instruction set, which is fixed once the native library is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Problem:
    """One separable convolution: sizes, geometry, and what is applied between and after its factors."""

    channels: int
    out_channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dilation: tuple[int, int] = (1, 1)
    depth_multiplier: int = 1
    batch: int = 1
    bias: bool = True
    inner_activation: str | None = None
    activation: str | None = None
    channels_last: bool = True


def _same(amount: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((amount, amount), (amount, amount))


# Channel counts around the vector widths (4, 8, 16 floats), every geometry option, borders wider than the image.
PROBLEMS = (
    Problem(32, 64, (14, 14), inner_activation="relu", activation="relu"),
    Problem(1, 1, (5, 5), bias=False),
    Problem(3, 5, (7, 9), batch=2),
    Problem(7, 16, (8, 6), activation="relu"),
    Problem(8, 8, (1, 1)),
    Problem(15, 17, (6, 11), inner_activation="relu"),
    Problem(16, 16, (12, 12), stride=(2, 2)),
    Problem(17, 33, (13, 9), stride=(2, 1)),
    Problem(24, 40, (10, 10), padding=_same(0)),
    Problem(31, 31, (9, 9), padding=((0, 1), (2, 0))),
    Problem(33, 15, (11, 7), kernel_size=(5, 5), padding=_same(2)),
    Problem(48, 20, (16, 4), kernel_size=(7, 7), padding=_same(3), batch=2),
    Problem(12, 64, (9, 9), kernel_size=(1, 1), padding=_same(0)),
    Problem(20, 24, (8, 15), kernel_size=(3, 5), padding=((1, 1), (2, 2))),
    Problem(16, 32, (15, 15), padding=_same(2), dilation=(2, 2), activation="relu"),
    Problem(40, 24, (17, 12), padding=_same(3), dilation=(3, 3), stride=(2, 2)),
    Problem(8, 48, (6, 6), padding=_same(4), dilation=(4, 4)),
    Problem(5, 12, (9, 8), depth_multiplier=2),
    Problem(16, 24, (10, 10), depth_multiplier=3, inner_activation="relu"),
    Problem(64, 32, (7, 7), channels_last=False, inner_activation="relu6", activation="relu6"),
)


def run(backend: str) -> dict[str, Any]:
    """Runs every problem on a backend, once on small integers and once on random floats.

    On integers all sums are exact in float32, in any order, so that the result must equal the float64 one bit for bit.
    On floats it must lie within n * 2^-24 * sum |x w| of it, with n = taps + channels summed over.

    Args:
        backend: Name of the backend to test.

    Returns:
        "backend", "isa" (None without native library), "problems", "failures" (one line each), "worst" (largest float
        error as a fraction of what is allowed) and "seconds".
    """
    import torch

    from dwsep.ops import native_status

    started = time.perf_counter()
    failures: list[str] = []
    worst = 0.0
    for seed, problem in enumerate(PROBLEMS):
        generator = torch.Generator().manual_seed(seed)
        try:
            actual, expected, _ = _compute(problem, backend, lambda *s, g=generator: _integers(g, *s))
            if not torch.equal(actual.double(), expected):
                wrong = int((actual.double() != expected).sum())
                failures.append(f"{problem}: {wrong} of {expected.numel()} integer results differ")
            actual, expected, bound = _compute(problem, backend, lambda *s, g=generator: torch.randn(*s, generator=g))
            error = (actual.double() - expected).abs()
            if not bool((error <= bound).all()):  # also where a result is NaN
                failures.append(f"{problem}: float error {float(error.max()):.3g} is more than rounding explains")
            else:
                worst = max(worst, float((error / bound.clamp_min(1e-300)).max()))
        except (RuntimeError, ValueError, TypeError) as error:
            failures.append(f"{problem}: {type(error).__name__}: {error}")
    return {
        "backend": backend,
        "isa": native_status().isa,
        "problems": len(PROBLEMS),
        "failures": failures,
        "worst": worst,
        "seconds": time.perf_counter() - started,
    }


def measure_layer() -> float:
    """Milliseconds that a separable float32 layer of 256 channels takes on 4 images of 28 x 28; the best of 20."""
    import torch

    import dwsep.functional

    x = torch.randn(4, 256, 28, 28).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(256, 1, 3, 3), torch.randn(256, 256, 1, 1)
    times = []
    with torch.no_grad():
        for _ in range(20):
            begin = time.perf_counter()
            dwsep.functional.depthwise_separable_conv2d(x, *weights, padding=1)
            times.append(1000 * (time.perf_counter() - begin))
    return min(times)


def _integers(generator: Any, *shape: int) -> Tensor:
    import torch

    return torch.randint(-3, 4, shape, generator=generator).float()


def _compute(problem: Problem, backend: str, draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backend's result, the float64 one, and the error that float32 rounding allows."""
    import torch

    import dwsep.functional

    inner_channels = problem.channels * problem.depth_multiplier
    x = draw(problem.batch, problem.channels, *problem.size)
    if problem.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = [draw(inner_channels, 1, *problem.kernel_size), draw(problem.out_channels, inner_channels, 1, 1)]
    biases = [draw(inner_channels), draw(problem.out_channels)] if problem.bias else [None, None]
    with torch.no_grad():
        actual = dwsep.functional.depthwise_separable_conv2d(
            x,
            *weights,
            *biases,
            stride=problem.stride,
            padding=problem.padding,
            dilation=problem.dilation,
            inner_activation=problem.inner_activation,
            activation=problem.activation,
            backend=backend,
        )
        with _one_thread():
            expected = _in_float64(problem, x, weights, biases, problem.inner_activation, problem.activation)
            magnitudes = [tensor if tensor is None else tensor.abs() for tensor in (x, *weights, *biases)]
            total = _in_float64(problem, magnitudes[0], magnitudes[1:3], magnitudes[3:], None, None)
    terms = problem.kernel_size[0] * problem.kernel_size[1] + inner_channels
    return actual, expected, terms * _UNIT_ROUNDOFF * total


@contextmanager
def _one_thread() -> Iterator[None]:
    # PyTorch takes the groups of a float64 convolution one at a time and shares each out between threads: on a busy
    # machine, waiting for one another would take most of a minute.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_float64(
    problem: Problem, x: Any, weights: Any, biases: Any, inner_activation: str | None, activation: str | None
) -> Tensor:
    # PyTorch's own convolution, not ours, so that a fault in the shared shape arithmetic shows up too.
    import torch.nn.functional as F

    activations = {None: lambda t: t, "relu": F.relu, "relu6": F.relu6}
    (top, bottom), (left, right) = problem.padding
    biases = [bias if bias is None else bias.double() for bias in biases]
    hidden = F.conv2d(
        F.pad(x.double(), (left, right, top, bottom)),
        weights[0].double(),
        biases[0],
        problem.stride,
        0,
        problem.dilation,
        groups=problem.channels,
    )
    hidden = activations[inner_activation](hidden)
    return activations[activation](F.conv2d(hidden, weights[1].double(), biases[1]))


if __name__ == "__main__":
    print(json.dumps(measure_layer() if sys.argv[1] == "time" else run(sys.argv[1])))
