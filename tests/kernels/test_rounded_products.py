"""Training programs whose products may round their operands to bfloat16: bit for bit where nothing is lost by it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import dwsep
from dwsep.ops.training_program import ACTIVATIONS, Kind, Statistics
from tests import isas
from tests.accelerate.toys import distance
from tests.ops.test_training_program import _row
from tests.problems import integers, last

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep


def _results(
    x: Tensor,
    parameters: list[Tensor],
    running: list[Tensor],
    rows: list[list[int]],
    names: list[str],
    norms: list[float],
    grad: Tensor | None,
    rounds: bool,
) -> list[Tensor]:
    """What a program makes of an input, and the gradients of it and of the parameters."""
    table = [number for row in rows for number in row], [ACTIVATIONS.index(name) for name in names], norms
    made = ops.training_program([x], parameters, running, *table, rounds)
    outputs, wants = [rows[-1][2]], [True] * (1 + len(parameters))
    grad = torch.ones_like(made[-1]) if grad is None else grad
    return [*made, *ops.training_program_backward([grad], [x], parameters, made, *table, outputs, wants, rounds)]


def check_integers(seed: int, count: int) -> None:
    """Pointwise, dense and mixed 1x1 convolutions of integers that bfloat16 holds, as many sums as float32 holds."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for index in range(count):
        batch, height, width = rng.randint(1, 3), rng.randint(1, 19), rng.randint(1, 19)
        channels, outputs = (rng.choice((1, 8, 15, 16, 17, 24, 33, 40, 64, 100)) for _ in range(2))
        x = last(integers(batch, channels, height, width))
        kind = ("pointwise", "dense", "mixed")[index % 3]
        if kind == "dense":
            taps, stride = rng.choice(((3, 3), (1, 1), (2, 3))), rng.choice((1, 2))
            shapes = [(outputs, channels, *taps), (outputs,)]
            places = {"pad_top": 1, "pad_bottom": 1, "pad_left": 1, "pad_right": 1, "depthwise": 2}
            places |= {"stride_h": stride, "stride_w": stride}
            rows = [_row(Kind.CONV, 0, 1, weight=0, bias=1, **places)]
        elif kind == "mixed" and channels > 1 and outputs > 1:
            first, own = rng.randint(1, channels - 1), rng.randint(1, outputs - 1)
            shapes = [(own, first, 1, 1), (own,), (outputs - own, channels - first, 1, 1)]
            rows = [_row(Kind.CONV, 0, 1, weight=0, bias=1), _row(Kind.PART, 0, 1, weight=2)]
        else:
            shapes = [(outputs, channels, 1, 1), (outputs,)]
            rows = [_row(Kind.CONV, 0, 1, weight=0, bias=1)]
        parameters = [integers(*shape, top=2) for shape in shapes]
        names = [rng.choice(("none", "relu")), "none"]
        plain = _results(x, parameters, [], rows, names, [], None, False)
        grad = last(integers(*plain[0].shape, top=1))
        both = [_results(x, parameters, [], rows, names, [], grad, rounds) for rounds in (False, True)]
        for one, other in zip(*both, strict=True):
            assert torch.equal(one, other), f"{kind} {tuple(x.shape)} {shapes} {names}"


def check_closeness(multiplies_pairs: bool) -> None:
    """An inverted residual on images large and small: rounding is seen, and no more than rounding."""
    torch.manual_seed(0)
    for size, narrow, wide in ((9, 24, 100), (112, 16, 96)):
        x = last(torch.randn(2, narrow, size, size))
        shapes = [(wide, narrow, 1, 1), (wide,), (wide,), (wide, 1, 3, 3), (wide,), (wide,), (narrow, wide, 1, 1)]
        parameters = [torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) / 4 for shape in shapes]
        pads = {"pad_top": 1, "pad_bottom": 1, "pad_left": 1, "pad_right": 1}
        rows = [
            _row(Kind.CONV, 0, 1, weight=0, norm=0, norm_weight=1, norm_bias=2),
            _row(Kind.CONV, 1, 2, weight=3, norm=1, norm_weight=4, norm_bias=5, depthwise=1, **pads),
            _row(Kind.CONV, 2, 3, weight=6),
        ]
        norms = [value for _ in range(2) for value in (float(Statistics.BATCH), 1e-5, 0.1)]
        running = [part for _ in range(2) for part in (torch.zeros(wide), torch.ones(wide))]
        grad = last(torch.randn(2, narrow, size, size))
        names = ["none", "relu6", "silu", "none"]
        both = [_results(x, parameters, running, rows, names, norms, grad, rounds) for rounds in (False, True)]
        for index, (one, other) in enumerate(zip(*both, strict=True)):
            assert distance(other, one) < 0.1, f"{size} {index}"
        assert (distance(both[1][-1], both[0][-1]) > 1e-5) == multiplies_pairs


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_rounded_products as t; t.check_integers(0, 120)")


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_close_to_float32(isa):
    pairs = isa in isas.BFLOAT16
    isas.run_on(isa, f"from tests.kernels import test_rounded_products as t; t.check_closeness({pairs})")
