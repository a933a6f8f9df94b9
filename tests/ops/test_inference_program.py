"""Native programs: every kind of step against torch, and tables which must be refused."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import dwsep
from dwsep.ops.inference_program import GATES, Home, Kind
from tests import isas, problems
from tests.problems import integers
from tests.programs import Step, draw_step

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
MEANS = 21  # the column of a step's means


def check_many(count: int, seed: int) -> None:
    """Drawn steps, bit for bit on small integers, on the instruction set in use and for any number of threads."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for index in range(count):
        kind = Kind(index % len(Kind))
        step = draw_step(kind, rng, lambda *shape: integers(*shape, top=2), ("none", "relu", "relu6"))
        step.bfloat16 = rng.random() < 0.5
        wanted = step.expected()
        if kind == Kind.POOL:
            wanted = wanted.float().double()
        for threads in (1, rng.choice((2, 3, 5))):
            with problems.threads(threads):
                (got,) = ops.inference_program(**step.arguments())
            where = f"{step.kind!r} {step.x.shape} to {wanted.shape}, {threads=}"
            if kind == Kind.LAYER_NORM:  # a root has no exact value
                assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-5), where
            else:
                assert torch.equal(got.double(), wanted), where


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_drawn_steps_exact_on_integers(isa):
    isas.run_on(isa, "from tests.ops import test_inference_program as t; t.check_many(200, seed=6)")


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_dense_rows_that_are_read_where_they_lie(channels, stride):
    torch.manual_seed(channels + stride)
    for outputs, width in ((8, 5), (33, 17), (96, 31)):
        step = Step(Kind.DENSE, integers(2, channels, 9, width, top=2))
        step.stride, step.pads, step.activations = (stride, stride), (1, 1, 1, 1), ("relu6", "none", "none")
        step.weight, step.bias = integers(outputs, channels, 3, 3, top=2), integers(outputs, top=2)
        (got,) = ops.inference_program(**step.arguments())
        assert torch.equal(got.double(), step.expected())


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((4, 4), (4, 4)), ((2, 3), (3, 3)), ((1, 1), (2, 2))])
@pytest.mark.parametrize("channels", [3, 32])
def test_patches_that_share_no_pixels(channels, kernel, stride):
    torch.manual_seed(channels + kernel[1])
    for size in ((12, 12), (13, 14), (4, 5)):
        step = Step(Kind.DENSE, integers(2, channels, *size, top=2))
        step.stride, step.activations = stride, ("relu6", "none", "none")
        step.weight, step.bias = integers(40, channels, *kernel, top=2), integers(40, top=2)
        step.operand = integers(*step.expected().shape)
        for threads in (1, 2, 3):
            with problems.threads(threads):
                (got,) = ops.inference_program(**step.arguments())
            assert torch.equal(got.double(), step.expected())


def test_a_layer_norm_in_place_and_of_large_means():
    torch.manual_seed(3)
    x = 1000 + torch.randn(2, 37, 5, 6)
    step = Step(Kind.LAYER_NORM, x, norm=torch.cat((torch.rand(37), torch.randn(37), torch.tensor([1e-6]))))
    (got,) = ops.inference_program(**step.arguments())
    eager = F.layer_norm(x.permute(0, 2, 3, 1), (37,), step.norm[:37], step.norm[37:74], 1e-6).permute(0, 3, 1, 2)
    wanted = step.expected()
    assert (got - wanted).norm() <= 2 * (eager - wanted).norm() + 1e-6
    arguments = step.arguments()
    count = x.numel()
    arguments["workspace"] = -(-count // 16) * 16
    arguments["values"] = torch.tensor(
        [[*x.shape, Home.INPUT, 0, 0], [*x.shape, Home.WORKSPACE, 0, 0], [*x.shape, Home.OUTPUT, 0, 0]]
    )
    first = arguments["steps"]
    second, copy = first.clone(), first.clone()
    second[0, 1] = 1
    copy[0, :3] = torch.tensor([Kind.ACTIVATION, 1, 2])
    arguments["steps"] = torch.cat((first, second, copy))
    (twice,) = ops.inference_program(**arguments)
    step.x = got
    assert torch.allclose(twice.double(), step.expected(), atol=1e-4)


@pytest.mark.parametrize("kind", list(Kind))
def test_float_results_with_long_activations(kind):
    rng = random.Random(int(kind))
    torch.manual_seed(int(kind))
    names = ("silu", "hardswish", "gelu")
    for _ in range(20):
        step = draw_step(kind, rng, torch.randn, (*names, *GATES) if kind == Kind.POINTWISE else names)
        (got,) = ops.inference_program(**step.arguments())
        wanted = step.expected()
        assert (got - wanted).norm() <= 1e-6 * wanted.norm() + 1e-6


@pytest.mark.parametrize("kind", [Kind.DENSE, Kind.DEPTHWISE, Kind.POINTWISE, Kind.SEPARABLE])
def test_float_results_of_products_in_bfloat16(kind):
    rng = random.Random(int(kind))
    torch.manual_seed(int(kind))
    for _ in range(20):
        step = draw_step(kind, rng, torch.randn, ("none", "relu", "silu"))
        step.bfloat16 = False
        wanted, step.bfloat16 = step.expected(), True
        (got,) = ops.inference_program(**step.arguments())
        # Where what is rounded lies close to the middle, the float before it decides the direction: once in a while.
        assert (got - step.expected()).norm() <= 1e-3 * wanted.norm()
        assert (got - wanted).norm() <= 1e-2 * wanted.norm()


def test_a_chain_in_the_workspace():
    torch.manual_seed(1)
    x = torch.randn(2, 16, 6, 6)
    values = [
        [2, 16, 6, 6, Home.INPUT, 0, 0],
        [2, 16, 6, 6, Home.WORKSPACE, 0, 0],
        [2, 16, 1, 1, Home.WORKSPACE, 1152, 0],
        [2, 16, 6, 6, Home.OUTPUT, 0, 0],
        [2, 16, 1, 1, Home.OUTPUT, 1, 0],
    ]
    plain = [0, 1, *(1,) * 6, *(0,) * 4, -1, 0, -1, -1, 0]
    steps = [
        [Kind.ACTIVATION, 0, 1, -1, 1, 0, *plain],
        [Kind.POOL, 1, 2, -1, 0, 0, *plain],
        [Kind.GATE, 1, 1, 2, 0, 0, *plain],
        [Kind.ACTIVATION, 1, 3, 0, 0, 0, *plain],
        [Kind.POOL, 1, 4, -1, 0, 0, *plain],
    ]
    out, means = ops.inference_program(
        [problems.last(x)], torch.zeros(0), torch.tensor(values), torch.tensor(steps), [2, 16, 6, 6, 2, 16, 1, 1], 1184
    )
    z = x.relu() * x.relu().mean((2, 3), keepdim=True)
    assert torch.allclose(out, z + x, atol=1e-6)
    assert torch.allclose(means, z.mean((2, 3), keepdim=True), atol=1e-6)


def _wide(kind: Kind, kernel: int, stride: int, expansion: bool) -> Step:
    """An image of so many floats that a thread's cache holds a part of its rows."""
    side, channels, wide = 60, 16 if expansion else 96, 96
    pad = kernel // 2
    step = Step(kind, integers(1, channels, side, side + 4, top=2), pads=(pad,) * 4, stride=(stride, stride))
    step.expansion = integers(wide, channels, 1, 1, top=2) if expansion else None
    step.weight, step.bias = integers(wide, 1, kernel, kernel, top=2), integers(wide, top=2)
    step.pointwise = integers(20, wide, 1, 1, top=1) if kind == Kind.SEPARABLE else None
    step.activations = ("relu", "relu6" if step.pointwise is not None else "none", "relu6" if expansion else "none")
    return step


@pytest.mark.parametrize("kind", [Kind.DEPTHWISE, Kind.SEPARABLE])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2), (7, 1)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_bands_of_rows_exact_on_integers(kind, kernel, stride, bfloat16):
    torch.manual_seed(kernel)
    step = _wide(kind, kernel, stride, expansion=True)
    step.bfloat16 = bfloat16
    wanted = step.expected()
    for threads in (1, 2, 3):
        with problems.threads(threads):
            (got,) = ops.inference_program(**step.arguments())
        assert torch.equal(got.double(), wanted), threads


@pytest.mark.parametrize("expansion", [True, False])
def test_means_of_a_depthwise_step_are_the_same_for_any_number_of_threads(expansion):
    torch.manual_seed(2)
    for batch, side in ((1, 14), (3, 7), (1, 1)):
        step = _wide(Kind.DEPTHWISE, 3, 1, expansion)
        step.x = torch.randn(batch, step.x.shape[1], side, side)
        step.activations = ("silu", "none", "none")
        arguments = step.arguments()
        shape = arguments["output_sizes"]
        arguments["output_sizes"] = [*shape, *shape[:2], 1, 1]
        arguments["values"] = torch.cat((arguments["values"], torch.tensor([[*shape[:2], 1, 1, Home.OUTPUT, 1, 0]])))
        arguments["steps"][0, MEANS] = 2
        results = []
        for threads in (1, 2, 3):
            with problems.threads(threads):
                results.append(ops.inference_program(**arguments))
        wanted = step.expected()
        for out, means in results:
            assert (out - wanted).norm() <= 1e-6 * wanted.norm()
            assert torch.allclose(means.double(), wanted.mean((2, 3), keepdim=True), rtol=1e-5, atol=1e-6)
            assert torch.equal(out, results[0][0])
            assert torch.equal(means, results[0][1])


def _separable(**changes) -> Step:
    torch.manual_seed(0)
    weights = {"weight": torch.randn(24, 1, 3, 3), "pointwise": torch.randn(20, 24, 1, 1), "pads": (1, 1, 1, 1)}
    return Step(Kind.SEPARABLE, torch.randn(1, 8, 6, 5), expansion=torch.randn(24, 8, 1, 1), **weights, **changes)


def test_opcheck():
    opcheck(ops.inference_program, (), _separable(operand=torch.randn(1, 20, 6, 5)).arguments())
    opcheck(ops.pack_depthwise_weights, (torch.randn(20, 1, 3, 3), torch.randn(20)))
    opcheck(ops.pack_depthwise_weights, (torch.randn(20, 1, 3, 3), None))


def _in_parts(step: Step, rng: random.Random) -> tuple[dict, list[slice]]:
    """A step's arguments where each of its values is some of the channels of a wider one, NaN but for these, and which
    they are in the outputs.
    """
    arguments = step.arguments()
    rows = arguments["values"].tolist()
    if step.kind == Kind.DEPTHWISE:
        rows.append([*rows[1][:2], 1, 1, Home.OUTPUT, 1, 0])
        arguments["steps"][0, MEANS] = len(rows) - 1
    sides = [(rng.choice((0, 1, 8)), rng.choice((0, 3, 16))) for _ in rows]
    if step.operand is not None:
        sides[2] = sides[1]  # what is added lies as the output does
    wholes = [[row[0], low + row[1] + high, *row[2:]] for row, (low, high) in zip(rows, sides)]
    parts = [[*row[:4], Home.PART, number, low] for number, (row, (low, _)) in enumerate(zip(rows, sides))]
    inputs = [row[5] for row in rows if row[4] == Home.INPUT]
    which = [number for number, row in enumerate(rows) if row[4] == Home.INPUT]
    padded = [(0, 0, 0, 0, *sides[number]) for number in which]
    arguments["inputs"] = [
        problems.last(F.pad(arguments["inputs"][place], pad, value=float("nan"))) for place, pad in zip(inputs, padded)
    ]
    for column in (1, 2, 3, 20, MEANS):
        if arguments["steps"][0, column] >= 0:
            arguments["steps"][0, column] += len(rows)
    made = [number for number, row in enumerate(rows) if row[4] == Home.OUTPUT]
    arguments["values"] = torch.tensor(wholes + parts)
    arguments["output_sizes"] = [size for number in made for size in wholes[number][:4]]
    return arguments, [slice(sides[number][0], sides[number][0] + rows[number][1]) for number in made]


def check_parts(count: int, seed: int) -> None:
    """Drawn steps on parts of values, as :func:`check_many`; the rest of the outputs is left alone."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    index = 0
    while index < count:
        kind = (Kind.POINTWISE, Kind.DEPTHWISE)[index % 2]
        step = draw_step(kind, rng, lambda *shape: integers(*shape, top=2), ("none", "relu", "relu6"))
        step.operand = None if kind == Kind.DEPTHWISE else step.operand
        wide = step.x if step.expansion is None else step.expansion
        if kind == Kind.DEPTHWISE and step.weight.shape[0] != wide.shape[1 if step.expansion is None else 0]:
            continue
        index += 1
        step.bfloat16 = rng.random() < 0.5
        arguments, channels = _in_parts(step, rng)
        wanted = step.expected()
        for threads in (1, rng.choice((2, 3, 5))):
            with problems.threads(threads):
                results = ops.inference_program(**arguments)
            part = results[0][:, channels[0]]
            assert torch.equal(part.double(), wanted), f"{step.kind!r} {step.x.shape} to {wanted.shape}, {threads=}"
            if kind == Kind.DEPTHWISE:
                means = wanted.mean((2, 3), keepdim=True)
                assert torch.allclose(results[1][:, channels[1]].double(), means, rtol=1e-6, atol=1e-6)
            for result, own in zip(results, channels):
                assert result[:, : own.start].isnan().all()
                assert result[:, own.stop :].isnan().all()


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_drawn_steps_on_parts_exact_on_integers(isa):
    isas.run_on(isa, "from tests.ops import test_inference_program as t; t.check_parts(100, seed=7)")


@pytest.mark.parametrize(
    ("row", "column", "entry", "message"),
    [
        (2, 5, 2, "a part must follow"),
        (2, 6, -1, "a part lies outside"),
        (2, 6, 100, "a part lies outside"),
        (2, 1, 1 << 40, "a part lies outside"),
        (2, 2, 5, "a part lies outside"),
        (3, 5, 0, "writes into an input|a part lies outside"),
    ],
)
def test_bad_parts(row, column, entry, message):
    torch.manual_seed(0)
    step = Step(Kind.POINTWISE, torch.randn(1, 8, 6, 5), pointwise=torch.randn(8, 8, 1, 1))
    arguments, _ = _in_parts(step, random.Random(3))
    ops.inference_program(**arguments)
    arguments["values"][row, column] = entry
    with pytest.raises(RuntimeError, match=message):
        ops.inference_program(**arguments)


@pytest.mark.parametrize("kind", [Kind.DENSE, Kind.SEPARABLE, Kind.POOL, Kind.GATE, Kind.ACTIVATION])
def test_parts_of_other_steps_are_refused(kind):
    rng = random.Random(int(kind))
    torch.manual_seed(0)
    step = draw_step(kind, rng, torch.randn, ("none",))
    for _ in range(20):
        arguments, _ = _in_parts(step, rng)
        if any(part[1] != arguments["values"][part[5], 1] for part in arguments["values"] if part[4] == Home.PART):
            with pytest.raises(RuntimeError, match="takes or makes a part"):
                ops.inference_program(**arguments)


V, S = "values", "steps"


@pytest.mark.parametrize(
    ("table", "row", "column", "entry", "message"),
    [
        (V, 0, 0, 2, "not the sizes that the program was made for"),
        (V, 0, 1, 0, "sizes are out of range"),
        (V, 0, 5, 1, "input's number is too large"),
        (V, 0, 5, -1, "input's number is too large"),
        (V, 0, 4, 4, "an input, in the workspace, an output or a part"),
        (V, 0, 4, Home.PART, "a part must follow"),
        (V, 1, 1, 21, "output_sizes and values disagree"),
        (V, 1, 2, 1 << 62, "sizes are out of range"),
        (V, 1, 4, Home.WORKSPACE, "outside the workspace"),
        (V, 1, 5, 1, "outputs must be numbered"),
        (S, 0, 0, len(Kind), "unknown step"),
        (S, 0, 0, Kind.DENSE, "cannot follow an expansion"),
        (S, 0, 0, Kind.POINTWISE, "not the sizes|only a depthwise or separable"),
        (S, 0, 0, Kind.POOL, "has not the sizes"),
        (S, 0, 0, Kind.GATE, "has not the sizes"),
        (S, 0, 1, 2, "names no value"),
        (S, 0, 2, 0, "writes into an input"),
        (S, 0, 2, -1, "names no value"),
        (S, 0, 3, 0, "does not fit its output"),
        (S, 0, 4, 9, "unknown activation"),
        (S, 0, 4, 6, "only a pointwise step ends in a gate"),
        (S, 0, 5, 6, "only a pointwise step ends in a gate"),
        (S, 0, 6, 1, "do not begin at a cache line"),
        (S, 0, 6, 1 << 40, "outside the weights"),
        (S, 0, 6, -16, "outside the weights"),
        (S, 0, 7, 48, "outside the weights"),
        (S, 0, 8, 4, "not the sizes that it computes"),
        (S, 0, 10, 2, "not the sizes that it computes"),
        (S, 0, 10, 0, "stride and dilation must be between"),
        (S, 0, 14, 0, "not the sizes that it computes"),
        (S, 0, 18, 1 << 40, "outside the weights"),
        (S, 0, 20, 0, "only a pointwise step's input is gated"),
        (S, 0, 19, 6, "only a pointwise step ends in a gate"),
        (S, 0, MEANS, 0, "means do not fit"),
        (S, 0, 0, Kind.LAYER_NORM, "has not the sizes"),
    ],
)
def test_bad_tables(table, row, column, entry, message):
    arguments = _separable().arguments()
    ops.inference_program(**arguments)
    arguments[table] = arguments[table].clone()
    arguments[table][row, column] = entry
    with pytest.raises(RuntimeError, match=message):
        ops.inference_program(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "input's number is too large"),
        ({"inputs": [torch.randn(1, 8, 6, 5)]}, "dense in channels last"),
        ({"inputs": [torch.randn(1, 8, 6, 5).double()]}, "not the sizes"),
        ({"weights": torch.zeros(16)}, "outside the weights"),
        ({"weights": torch.zeros(99, dtype=torch.double)}, "contiguous float32 vector"),
        ({"steps": torch.zeros(1, 3, dtype=torch.long)}, "int64 tensor of 23 columns"),
        ({"values": torch.zeros(2, 6)}, "int64 tensor of 7 columns"),
        ({"output_sizes": [1, 20, 6]}, "4 entries an output"),
        ({"output_sizes": [1, 20, 6, 5, 1, 1, 1, 1]}, "more outputs than values"),
        ({"workspace": -1}, "workspace must not be negative"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.inference_program(**{**_separable().arguments(), **change})


@pytest.mark.parametrize("weight", [torch.ones(3, 2, 3, 3), torch.ones(3, 1, 3, 3).bfloat16(), torch.ones(3, 1)])
def test_bad_depthwise_weights(weight):
    with pytest.raises(RuntimeError, match="weight must"):
        ops.pack_depthwise_weights(weight, None)
