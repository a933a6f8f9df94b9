"""The same bits every time, with any number of threads: every native operator, on every instruction set.

Problems are cut in several ways: by images, by rows, by channels, with tails, and less of each than there are threads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import dwsep
from dwsep.ops.inference_program import Kind
from dwsep.ops.training_program import Statistics
from tests import isas, problems
from tests.ops.test_expanded_stage import Problem
from tests.ops.test_training_program import _block as draw_program
from tests.problems import last
from tests.programs import draw_step

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
THREADS = (1, 2, 3, 5)
REPEATS = 25  # with each number of threads, so that there are a hundred
Operation = Callable[[], tuple[Tensor, ...]]

# batch, channels, spatial, kernel, stride, dilation
SHAPES = (
    (1, 32, (40, 40), 3, 1, 1),
    (1, 24, (7, 7), 3, 1, 1),
    (3, 16, (15, 9), 5, 2, 1),
    (9, 35, (8, 8), 3, 1, 2),
    (2, 40, (100,), 7, 1, 3),
    (2, 24, (300,), 4, 1, 1),
    (2, 260, (6, 6), 3, 1, 1),
    (1, 17, (5, 9, 8), 3, 1, 1),
)


def _convolutions(shape: tuple, dtype: torch.dtype, channels_last: bool) -> Iterator[tuple[str, Operation]]:
    batch, channels, spatial, kernel, stride, dilation = shape
    axes, pad = len(spatial), (kernel - 1) * dilation // 2
    problem = problems.Problem(
        "", batch, channels, 1, 50, spatial, (kernel,) * axes, (stride,) * axes, (dilation,) * axes, (pad,) * 2 * axes
    )
    generator = torch.Generator().manual_seed(6)
    draw = problems.normal(generator)
    x, depthwise, pointwise, bias, pointwise_bias = tensors = tuple(
        tensor.to(dtype) for tensor in problem.tensors(draw, channels_last)
    )
    grad_inner = draw((batch, channels, *problem.output)).to(dtype)
    grad = draw((batch, 50, *problem.output)).to(dtype)
    if channels_last:
        grad_inner, grad = last(grad_inner), last(grad)
    rest = (*problem.geometry, "silu", "gelu", "none")
    packed = ops.pack_separable_weights(depthwise, pointwise, bias, pointwise_bias, 1)
    sizes = (channels, 50, list(problem.kernel))
    yield "separable_conv", lambda: (ops.separable_conv(*tensors, *rest),)
    yield "separable_conv_packed", lambda: (ops.separable_conv_packed(x, packed, *sizes, *rest),)
    yield "separable_conv_backward", lambda: ops.separable_conv_backward(grad, *tensors, *rest, [True] * 5)
    rest_of_one = (*problem.geometry, "silu")
    yield "depthwise_conv", lambda: (ops.depthwise_conv(x, depthwise, bias, *rest_of_one),)
    arguments = (grad_inner, x, depthwise, bias, *rest_of_one, [True] * 3)
    yield "depthwise_conv_backward", lambda: ops.depthwise_conv_backward(*arguments)


def _stages(shape: tuple) -> Iterator[tuple[str, Operation]]:
    batch, channels, spatial, kernel, stride, dilation = shape
    axes, pad = len(spatial), (kernel - 1) * dilation // 2
    generator = torch.Generator().manual_seed(7)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x, affine = last(draw(batch, channels, *spatial)), (draw(channels), draw(channels), "silu")
    geometry = ([stride] * axes, [pad] * 2 * axes, [dilation] * axes)
    for name, weight, rest in (
        ("pointwise_stage", draw(50, channels, *(1,) * axes), ()),
        ("depthwise_stage", draw(channels, 1, *(kernel,) * axes), geometry),
    ):
        forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
        outputs = weight.shape[0]
        arguments = (x, *affine, weight, draw(outputs), *rest)
        yield name, lambda forward=forward, arguments=arguments: forward(*arguments)
        y, _ = forward(*arguments)
        grad, correction = last(torch.randn(y.shape, generator=generator)), draw(2, outputs)
        arguments = (grad, y, correction, x, *affine, weight, True, *rest, [True, True])
        yield f"{name}_backward", lambda backward=backward, arguments=arguments: backward(*arguments)
    other = last(draw(batch, channels, *spatial))
    correction = draw(2, channels)
    yield "stage_output", lambda: (ops.stage_output(x, *affine, other),)
    yield "stage_output_backward", lambda: ops.stage_output_backward(other, x, *affine)
    yield "stage_sums", lambda: (ops.stage_sums(x),)
    yield "stage_corrected", lambda: (ops.stage_corrected(other, x, correction),)
    gate, grad_mean = draw(batch, channels), draw(batch, channels)
    yield "stage_pool", lambda: (ops.stage_pool(x, *affine),)
    yield "stage_gate", lambda: (ops.stage_gate(x, *affine, gate),)
    yield "stage_gate_gradient", lambda: (ops.stage_gate_gradient(other, x, *affine),)
    yield "stage_squeeze_backward", lambda: ops.stage_squeeze_backward(other, gate, grad_mean, x, *affine)
    if axes == 2:
        size = [2 * n + 1 for n in spatial]
        yield "resize_bilinear", lambda: (ops.resize_bilinear(x, size, False, []),)
        larger = last(draw(batch, channels, *size))
        yield "resize_bilinear_backward", lambda: (ops.resize_bilinear_backward(larger, spatial, True, []),)
        packed = ops.pack_pointwise_weights(draw(50, channels, 1, 1), draw(50))
        residual = last(draw(batch, 50, *spatial))
        arguments = (x, packed, 50, "silu", residual)
        yield "pointwise_conv_packed", lambda: (ops.pointwise_conv_packed(*arguments),)


def _programs() -> Iterator[tuple[str, Operation]]:
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    for kind in Kind:
        for number in range(4):
            step = draw_step(kind, rng, lambda *shape: torch.randn(shape, generator=generator), ("relu6", "silu"))
            step.bfloat16 = number % 2 == 1
            arguments = step.arguments()
            yield "inference_program", lambda arguments=arguments: tuple(ops.inference_program(**arguments))


def _training() -> Iterator[tuple[str, Operation]]:
    for statistics in (Statistics.BATCH, Statistics.RUNNING):
        torch.manual_seed(4)
        arguments = draw_program(statistics, 0)
        inputs, parameters, _, *table = arguments
        yield "training_program", lambda arguments=arguments: tuple(ops.training_program(*arguments))
        made = ops.training_program(*arguments)
        grads, outputs = [torch.randn(2, 9), torch.randn(2, 6, 5, 7)], [len(table[1]) - 1, len(table[1]) - 3]
        rest = (grads, inputs, parameters, made, *table, outputs, [True] * (len(inputs) + len(parameters)))
        yield "training_program_backward", lambda rest=rest: tuple(ops.training_program_backward(*rest))
    channels = (16, 7, 33)
    total = sum(channels)
    weights = [torch.randn(count, 1, size, size) for count, size in zip(channels, (3, 5, 7), strict=True)]
    geometry = [1] * 6, [side for size in (1, 2, 3) for side in [size] * 4], [1] * 6
    x, affine = last(torch.randn(3, total, 15, 9)), (torch.randn(total), torch.randn(total), "silu")
    mixed = (x, *affine, weights, torch.randn(total), *geometry)
    yield "mixed_stage", lambda: ops.mixed_stage(*mixed)
    y, _ = ops.mixed_stage(*mixed)
    back = (last(torch.randn_like(y)), y, torch.randn(2, total), x, *affine, weights, True, *geometry, [True, True])

    def backward() -> tuple[Tensor, ...]:
        of_x, of_affine, of_weights, of_bias = ops.mixed_stage_backward(*back)
        return of_x, of_affine, *of_weights, of_bias

    yield "mixed_stage_backward", backward
    torch.manual_seed(5)
    expanded, _, _ = Problem(24, 72, (23, 21), 5, stride=(2, 1), bias=True).draw()
    load = (last(torch.randn(3, 19, 45, 37)), torch.randn(19), torch.randn(19), "silu")
    dense, sizes = torch.randn(20, 19, 3, 3), ([2, 1], [1, 0, 2, 1], [1, 1])
    yield "dense_stage", lambda: ops.dense_stage(*load, dense, None, *sizes)
    raw, _ = ops.dense_stage(*load, dense, None, *sizes)
    of_raw = (torch.randn_like(raw), raw, torch.randn(2, 20), *load, dense, True, *sizes, [True, True])
    yield "dense_stage_backward", lambda: ops.dense_stage_backward(*of_raw)
    yield "expanded_stage_backward", lambda: ops.expanded_stage_backward(**expanded)


def _large_weight() -> Iterator[tuple[str, Operation]]:
    """A weight so large that its gradient is made of all pixels at once."""
    generator = torch.Generator().manual_seed(8)
    x, y = (last(torch.randn(3, channels, 7, 5, generator=generator)) for channels in (560, 500))
    weight, correction = torch.randn(500, 560, 1, 1, generator=generator), torch.randn(2, 500, generator=generator)
    arguments = (torch.cos(y), y, correction, x, torch.cos(x[0, :, 0, 0]), x[0, :, 1, 1].contiguous(), "silu", weight)
    yield "pointwise_stage_backward", lambda: ops.pointwise_stage_backward(*arguments, True, [True, True])


def _operations() -> Iterator[tuple[str, Operation]]:
    for index, shape in enumerate(SHAPES):
        dtype, channels_last = ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True))[index % 3]
        yield from _convolutions(shape, dtype, channels_last)
        if (dtype, channels_last) != (torch.float32, True):
            yield from _convolutions(shape, torch.float32, True)
        yield from _stages(shape)
    yield from _large_weight()
    yield from _programs()
    yield from _training()


def _bits(results: tuple[Tensor, ...]) -> list[Tensor]:
    """Integers with the same bits: to a comparison of floats, 0 and -0 are the same, and NaN is not itself."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [result.contiguous().view(integer[result.element_size()]) for result in results]


def check_all(repeats: int) -> None:
    """Every operator, on the instruction set in use."""
    for name, operation in _operations():
        with problems.threads(1):
            expected = _bits(operation())
        for count in THREADS:
            with problems.threads(count):
                for repeat in range(repeats):
                    for position, (got, wanted) in enumerate(zip(_bits(operation()), expected, strict=True)):
                        case = f"{name}: result {position} with {count} threads, call {repeat}, {tuple(got.shape)}"
                        assert torch.equal(got, wanted), case


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_bits_depend_neither_on_threads_nor_on_the_call(isa):
    # The way in which work is cut is common to all: fewer calls on those which are not in use.
    repeats = REPEATS if isa == dwsep.ops.native_status().isa else 5
    isas.run_on(isa, f"from tests.kernels import test_repeatability as t; t.check_all({repeats})")


def test_every_native_operator_is_called():
    """A new operator is called here too, or named as one that has nothing to divide among threads."""
    schemas = torch._C._jit_get_all_schemas()
    defined = {schema.name.removeprefix("dwsep::") for schema in schemas if schema.name.startswith("dwsep::")}
    serial = {f"pack_{kind}_weights" for kind in ("depthwise", "separable", "pointwise")}
    serial |= {"stage_statistics", "stage_correction"}
    assert {name for name, _ in _operations()} == defined - serial
