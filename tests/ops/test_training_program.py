"""Training programs: the native interpreter against the reference's, for every kind of step and what may be wanted."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import dwsep
from dwsep.ops import training_program
from dwsep.ops.training_program import ACTIVATIONS, COLUMNS, Kind, Statistics, needed

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
NORMS = (Statistics.BATCH_AND_UPDATE, Statistics.BATCH, Statistics.RUNNING)


def _row(kind: Kind, source: int, target: int, **fields: int) -> list[int]:
    given = {"kind": kind, "source": source, "target": target, "stride_h": 1, "stride_w": 1, "dilation_h": 1}
    given |= {"dilation_w": 1, "pad_top": 0, "pad_bottom": 0, "pad_left": 0, "pad_right": 0, "depthwise": 0}
    return [int((given | fields).get(column, -1)) for column in COLUMNS]


def _block(
    statistics: Statistics, hard: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[int], list[float]]:
    """A norm of the input, an inverted residual with squeeze and excite, a linear head; the input given out, too."""
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    shapes = [(20, 6, 1, 1), (20,), (20,), (20,), (20, 1, 3, 3), (20,), (5, 20, 1, 1), (5,), (20, 5, 1, 1), (20,)]
    shapes += [(6, 20, 1, 1), (6,), (6,), (9, 6), (9,)]
    parameters = [torch.randn(shape) for shape in shapes]
    pads = {"pad_top": 1, "pad_bottom": 1, "pad_left": 1, "pad_right": 1}
    rows = [
        _row(Kind.NORM, 0, 1, norm=0),
        _row(Kind.CONV, 1, 2, weight=0, bias=1, norm=1, norm_weight=2, norm_bias=3),
        _row(Kind.CONV, 2, 3, weight=4, norm=2, norm_weight=5, depthwise=1, **pads),
        _row(Kind.POOL, 3, 4, option=1),
        _row(Kind.CONV, 4, 5, weight=6, bias=7),
        _row(Kind.CONV, 5, 6, weight=8, bias=9),
        _row(Kind.GATE, 6, 7, option=hard),
        _row(Kind.GATED, 3, 8, operand=7, option=1),
        _row(Kind.GATED, 3, 9, operand=7, option=1),
        _row(Kind.OUTPUT, 8, 10, operand=9),
        _row(Kind.CONV, 10, 11, weight=10, norm=3, norm_weight=11, norm_bias=12),
        _row(Kind.OUTPUT, 1, 12),
        _row(Kind.OUTPUT, 11, 13, operand=12),
        _row(Kind.OUTPUT, 13, 14, operand=0),
        _row(Kind.NORM, 14, 15),
        _row(Kind.OUTPUT, 15, 16, operand=14),
        _row(Kind.POOL, 15, 17, option=0),
        _row(Kind.CONV, 17, 18, weight=13, bias=14),
    ]
    names = ["none", "relu6", "gelu", "hardswish", "none", "silu", *["none"] * 9, "relu", *["none"] * 3]
    running = [part for n in (6, 20, 20, 6) for part in (torch.randn(n), torch.rand(n) + 0.5)]
    norms = [value for _ in range(4) for value in (float(statistics), 1e-5, 0.1)]
    return (
        [x],
        parameters,
        running,
        [number for row in rows for number in row],
        [ACTIVATIONS.index(name) for name in names],
        norms,
    )


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("statistics", NORMS)
@pytest.mark.parametrize("hard", [0, 1])
def test_native_equals_the_reference(statistics, hard):
    inputs, parameters, running, rows, activations, norms = _block(statistics, hard)
    native_running, own_running = _clones(running), _clones(running)
    made = ops.training_program(inputs, parameters, native_running, rows, activations, norms)
    wanted = training_program._forward(inputs, parameters, own_running, rows, activations, norms)
    for one, other in zip([*made, *native_running], [*wanted, *own_running], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    changed = any(not torch.equal(a, b) for a, b in zip(running, native_running, strict=True))
    assert changed == (statistics is Statistics.BATCH_AND_UPDATE)

    kept = needed(rows, activations, norms, 1)
    spared = [tensor if need else torch.empty(0) for tensor, need in zip(made, kept[1], strict=True)]
    steps = training_program._steps(rows, norms)
    places = itertools.accumulate((step.made for step in steps), initial=0)
    products = {place for place, step in zip(places, steps, strict=False) if step.kind is Kind.GATED}
    assert len(products) == 2
    without_products = [torch.empty(0) if place in products else tensor for place, tensor in enumerate(spared)]
    outputs = [16, 9, 4, 18]
    grads = [torch.randn(2, 6, 5, 7), torch.randn(2, 20, 5, 7), torch.randn(2, 20, 1, 1), torch.randn(2, 9)]
    rng = random.Random(0)
    for trial in range(12):
        wants = [True] * 16 if trial == 0 else [rng.random() < 0.5 for _ in range(16)]
        given = [grad if trial == 0 or rng.random() < 0.8 else torch.empty(0) for grad in grads]
        before = _clones(given)
        kept_made = without_products if trial % 2 else spared
        rest = (inputs, parameters, kept_made, rows, activations, norms, outputs, wants)
        found = ops.training_program_backward(given, *rest)
        expected = training_program._backward(given, *rest)
        for one, other, want in zip(found, expected, wants, strict=True):
            assert one.shape == other.shape
            assert want or one.numel() == 0
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        pointers = [t.data_ptr() for t in (*found, *given) if t.numel()]
        assert len(set(pointers)) == len(pointers)


def _mixed(
    statistics: Statistics, depthwise: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[int], list[float]]:
    """Convolutions of several kernel sizes, or of 1x1, each of some of the channels, between two of all of them."""
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    parts = [(9, 1, 3, 3), (11, 1, 5, 5)] if depthwise else [(13, 9, 1, 1), (7, 11, 1, 1)]
    shapes = [(20, 6, 1, 1), (20,), (20,), *parts, (parts[1][0],), (20,), (20,), (4, 20, 1, 1)]
    parameters = [torch.randn(shape) for shape in shapes]
    pads = [{f"pad_{side}": n for side in ("top", "bottom", "left", "right")} for n in (1, 2)]
    rows = [
        _row(Kind.CONV, 0, 1, weight=0, norm=0, norm_weight=1, norm_bias=2),
        _row(Kind.CONV, 1, 2, weight=3, norm=1, norm_weight=6, norm_bias=7, depthwise=depthwise, **pads[0]),
        _row(Kind.PART, 1, 2, weight=4, bias=5, depthwise=depthwise, **pads[1]),
        _row(Kind.CONV, 2, 3, weight=8),
    ]
    running = [part for _ in range(2) for part in (torch.randn(20), torch.rand(20) + 0.5)]
    norms = [value for _ in range(2) for value in (float(statistics), 1e-5, 0.1)]
    names = [ACTIVATIONS.index(name) for name in ("none", "silu", "hardswish", "none")]
    return [x], parameters, running, [number for row in rows for number in row], names, norms


@pytest.mark.parametrize("statistics", [Statistics.BATCH_AND_UPDATE, Statistics.RUNNING])
@pytest.mark.parametrize("depthwise", [0, 1])
def test_native_equals_the_reference_for_mixed_convolutions(statistics, depthwise):
    inputs, parameters, running, rows, activations, norms = _mixed(statistics, depthwise)
    native_running, own_running = _clones(running), _clones(running)
    made = ops.training_program(inputs, parameters, native_running, rows, activations, norms)
    wanted = training_program._forward(inputs, parameters, own_running, rows, activations, norms)
    for one, other in zip([*made, *native_running], [*wanted, *own_running], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    kept = needed(rows, activations, norms, 1)
    spared = [tensor if need else torch.empty(0) for tensor, need in zip(made, kept[1], strict=True)]
    for wants in ([True] * 10, [False] * 4 + [True, False] * 3, [False] * 6 + [True] + [False] * 3):
        rest = (inputs, parameters, spared, rows, activations, norms, [3], wants)
        grad = torch.randn(2, 4, 5, 7)
        found = ops.training_program_backward([grad], *rest)
        expected = training_program._backward([grad], *rest)
        for one, other, want in zip(found, expected, wants, strict=True):
            assert (one.numel() > 0) == want
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_parts_must_be_like_their_convolution():
    inputs, parameters, running, rows, *rest = _mixed(Statistics.BATCH, 1)
    part = 2 * len(COLUMNS)
    for column, value in (("source", 0), ("target", 3), ("depthwise", 0)):
        changed = list(rows)
        changed[part + COLUMNS.index(column)] = value
        with pytest.raises(RuntimeError, match="part is not like the convolution"):
            ops.training_program(inputs, parameters, running, changed, *rest)
    alone = rows[part : part + len(COLUMNS)]
    with pytest.raises(RuntimeError, match="part belongs to no convolution"):
        ops.training_program(inputs, parameters, running, alone, *rest)


def test_opcheck():
    arguments = _block(Statistics.BATCH_AND_UPDATE, 0)
    # No compiler may take a list of tensors that is written to; accelerated networks leave compilers their own forward.
    opcheck(
        ops.training_program, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    inputs, parameters, _, *table = arguments
    made = ops.training_program(*arguments)
    rest = (inputs, parameters, made, *table, [16], [True] * 16)
    opcheck(ops.training_program_backward, ([torch.randn(2, 6, 5, 7)], *rest))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("kind", 9, "kind is unknown"),
        ("source", 18, "does not exist yet"),
        ("target", 0, "must be a new value"),
        ("operand", 99, "operand does not exist"),
        ("weight", 15, "parameter does not exist"),
        ("norm", 4, "norm does not exist"),
    ],
)
def test_tables_which_must_be_refused(column, value, message):
    inputs, parameters, running, rows, *rest = _block(Statistics.BATCH, 0)
    rows[len(COLUMNS) + COLUMNS.index(column)] = value
    with pytest.raises(RuntimeError, match=message):
        ops.training_program(inputs, parameters, running, rows, *rest)
