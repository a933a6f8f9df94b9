"""The depthwise stages on Triton against the reference: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.activations import NAMES
from dwsep.kernels.triton.shapes import Shape, shape_of
from tests.problems import exact, last, normal, recorded, small_integers

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import depthwise_stage, stage_passes
from dwsep.kernels.triton import depthwise_stage_configs as tables
from dwsep.kernels.triton import depthwise_stage_launch as launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.float32, torch.bfloat16)
NAMES_OF_RESULTS = ("y", "sums", "x", "affine", "weight", "bias")
SAME = [1, 1], [1, 1, 1, 1], [1, 1]
# Size, kernel, stride, padding, dilation.
GEOMETRIES = [
    ((7, 9), (3, 3), (1, 1), [1, 1, 1, 1], (1, 1)),  # two rows a thread, and a rest of one
    ((1, 5), (3, 3), (1, 1), [1, 1, 1, 1], (1, 1)),
    ((9, 10), (3, 3), (2, 2), [0, 1, 1, 0], (1, 1)),
    ((5, 7), (5, 5), (1, 1), [2, 2, 2, 2], (1, 1)),
    ((11, 9), (5, 5), (2, 2), [2, 2, 2, 2], (1, 1)),
    ((8, 9), (7, 7), (1, 1), [3, 3, 3, 3], (1, 1)),  # no backward of its own
    ((9, 8), (3, 2), (1, 1), [3, 4, 2, 7], (1, 1)),  # padding wider than the kernel: no tap meets all outputs
    ((9, 7), (3, 3), (4, 4), [6, 6, 6, 6], (6, 6)),  # stride and dilation share a factor: some inputs see no tap
    ((13, 11), (2, 3), (3, 2), [1, 0, 2, 3], (2, 3)),
    ((5, 5), (3, 3), (1, 1), [6, 6, 6, 6], (6, 6)),  # more residues than columns
    ((6, 9), (1, 1), (2, 3), [0, 0, 0, 0], (1, 1)),
    ((12, 10), (5, 4), (1, 1), [-1, -2, -2, -1], (1, 1)),
    ((40,), (4,), (1,), [3, 0], (1,)),
    ((40,), (31,), (1,), [15, 15], (1,)),
    ((70,), (35,), (1,), [17, 17], (1,)),  # more columns than a window holds
]


def place(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors where the kernels run, images with their channels innermost."""
    return [None if t is None else (last(t) if t.dim() > 2 and t.shape[1] > 1 else t).to(DEVICE) for t in tensors]


def run(x, scale, shift, activation, weight, bias, geometry, grad=None, correction=None, mask=(True, True)):
    """y, sums and, with ``grad``, the gradients of the kernels, back on the CPU."""
    x, scale, shift, weight, bias = place(x, scale, shift, weight, bias)
    y, sums = depthwise_stage.forward(x, scale, shift, activation, weight, bias, *geometry)
    found = [y, sums]
    if grad is not None:
        grad, correction = place(grad, correction)
        found += depthwise_stage.backward(
            grad, y, correction, x, scale, shift, activation, weight, bias is not None, *geometry, mask
        )
    return tuple(None if tensor is None else tensor.cpu() for tensor in found)


def truth(x, scale, shift, activation, weight, bias, geometry, grad=None, correction=None, mask=(True, True), y=None):
    """The same from the reference in float64; of the raw output ``y`` as it was stored, where that is given."""
    x, scale, shift, weight, bias, grad, correction, y = (
        None if t is None else t.double() for t in (x, scale, shift, weight, bias, grad, correction, y)
    )
    wanted, _ = stage_reference.stage(x, scale, shift, activation, weight, bias, geometry)
    y = wanted if y is None else y
    found = [wanted, stage_reference.sums_of(y)]
    if grad is not None:
        found += stage_reference.stage_backward(
            grad, y, correction, x, scale, shift, activation, weight, bias is not None, geometry, mask
        )
    return found


def problem(
    draw, size, kernel, stride, padding, dilation, channels, bias=True, affine=True, batch=2, activation="relu"
):
    """Arguments of a stage, and a gradient and its correction."""
    geometry = list(stride), padding, list(dilation)
    # Parameters are float32 where only the images are bfloat16.
    x, weight = draw((batch, channels, *size)), draw((channels, 1, *kernel))
    weight = weight.float() if x.dtype == torch.bfloat16 else weight
    scale, shift = (draw((channels,)).float() for _ in range(2)) if affine else (None, None)
    out = stage_reference.convolve(x.float(), weight.float(), None, geometry)
    activation = activation if affine else "none"
    shifts = draw((channels,)).to(weight.dtype) if bias else None
    return x, scale, shift, activation, weight, shifts, geometry, draw(tuple(out.shape)), draw((2, channels)).float()


@pytest.fixture(autouse=True)
def _other_operators(monkeypatch):
    """Passes before and behind a convolution are the references' where the kernels are interpreted."""
    if DEVICE == "cpu":
        plain = SimpleNamespace(
            stage_output=stage_reference.output,
            stage_output_backward=stage_reference.through_affine,
            stage_corrected=stage_reference.corrected,
            stage_sums=stage_reference.sums_of,
        )
        monkeypatch.setattr(stage_passes, "ops", plain)


@pytest.fixture
def forget_calls():
    """Calls are worked out anew within a test, and again after it."""
    for function in (launch.stage, launch.stage_backward):
        function.cache_clear()
    yield
    for function in (launch.stage, launch.stage_backward):
        function.cache_clear()


def check_exact(found, wanted, *context) -> None:
    """Results equal integers bit for bit."""
    for name, got, want in zip(NAMES_OF_RESULTS, found, wanted, strict=True):
        assert (got is None) == (want is None), (name, *context)
        assert got is None or exact(got, want), (name, *context)


@pytest.mark.parametrize("position", range(len(GEOMETRIES)))
def test_geometries_are_exact(position):
    dtype = DTYPES[position % 3]
    affine, bias, corrected = position % 5 != 1, position % 2 == 0, position % 4 != 1
    draw = small_integers(torch.Generator().manual_seed(0), dtype, 2)
    channels = (5, 16, 3)[position // 3 % 3]
    *rest, correction = problem(draw, *GEOMETRIES[position], channels, bias, affine)
    arguments = (*rest, correction if corrected else None)
    found = run(*arguments)
    check_exact(found, truth(*arguments, y=found[0]), dtype, affine, bias, corrected)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", range(len(GEOMETRIES)))
def test_all_geometries_are_exact(position, dtype):
    for affine, bias, corrected, channels in ((True, True, True, 21), (True, False, False, 16), (False, True, True, 5)):
        draw = small_integers(torch.Generator().manual_seed(1), dtype, 2)
        *rest, correction = problem(draw, *GEOMETRIES[position], channels, bias, affine)
        arguments = (*rest, correction if corrected else None)
        found = run(*arguments)
        check_exact(found, truth(*arguments, y=found[0]), affine, bias, corrected, channels)


@pytest.mark.parametrize("activation", ["none", *NAMES])
def test_activations_within_float32(activation, monkeypatch):
    # Never in a pass of its own: the kernel's own is what is tested.
    monkeypatch.setattr(tables, "activates_while_loading", lambda *_: True)
    draw = normal(torch.Generator().manual_seed(0))
    arguments = problem(draw, (5, 6), (3, 3), *SAME, 4, activation=activation)
    found = run(*arguments)
    for name, got, want in zip(NAMES_OF_RESULTS, found, truth(*arguments, y=found[0]), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation, kernel", [("silu", 3), ("gelu", 5)])
def test_half_precision_rounds_what_is_stored(dtype, activation, kernel, monkeypatch):
    # With each load, or in a pass of its own.
    monkeypatch.setattr(tables, "activates_while_loading", lambda *_: kernel == 3)
    draw = normal(torch.Generator().manual_seed(0))
    half = kernel // 2
    geometry = (7, 6), (kernel, kernel), (1, 1), [half] * 4, (1, 1)
    x, *others, grad, correction = problem(lambda shape: draw(shape).to(dtype), *geometry, 4, activation=activation)
    arguments = (x, *others, grad, correction)
    found = run(*arguments)
    eps = torch.finfo(dtype).eps
    nearest = eps if DEVICE == "cpu" and dtype == torch.bfloat16 else eps / 2  # the interpreter cuts bfloat16 off
    # What was activated in a pass of its own has been rounded, too: of 25 terms of either sign.
    slack = 1e-4 if kernel == 3 else 8 * eps
    for name, got, want in zip(NAMES_OF_RESULTS, found, truth(*arguments, y=found[0]), strict=True):
        # The weight of a type of its own is rounded to it, sums are not.
        stored = 1e-5 if name in ("sums", "affine") else nearest
        bound = stored * want.abs() + slack * want.abs().mean()
        assert ((got.double() - want).abs() <= bound).all(), name


def test_large_channels_loop_over_chunks(monkeypatch, forget_calls):
    # Few programs: each walks several tiles, and the second stage adds several chunks of several channel blocks.
    monkeypatch.setattr(tables, "PROGRAMS", 4)
    monkeypatch.setattr(tables, "BACKWARD_PROGRAMS", 8)
    draw = small_integers(torch.Generator().manual_seed(0), torch.float32, 2)
    arguments = problem(draw, (5, 7), (3, 3), (2, 1), [1, 1, 1, 1], (1, 2), 40)
    found = run(*arguments)
    check_exact(found, truth(*arguments, y=found[0]))


def test_64_bit_offsets_give_the_same(monkeypatch, forget_calls):
    draw = small_integers(torch.Generator().manual_seed(0))
    arguments = problem(draw, (9, 7), (3, 3), (2, 1), [1, 1, 1, 1], (1, 2), 6)
    narrow = run(*arguments)
    monkeypatch.setattr(Shape, "wide", property(lambda self: True))
    launch.stage.cache_clear()
    launch.stage_backward.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(narrow, run(*arguments), strict=True))


def test_statistics_keep_the_variance_of_large_means(monkeypatch, forget_calls):
    # A variance 10^-10 of the mean's square: in float32, plain squares would keep nothing of it.
    monkeypatch.setattr(tables, "PROGRAMS", 3)
    x = 1000 + 0.01 * torch.randn(2, 16, 24, 24)
    weight, geometry = torch.ones(16, 1, 1, 1), ([1, 1], [0] * 4, [1, 1])
    y, sums = run(x, None, None, "none", weight, None, geometry)
    count = y.numel() // 16
    variance = sums[1] / count - (sums[0] / count).square()
    wanted = y.double().movedim(1, 0).flatten(1).var(1, correction=0)
    torch.testing.assert_close(variance, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_only_the_gradients_that_are_asked_for(mask, kernel):
    half = kernel // 2
    draw = small_integers(torch.Generator().manual_seed(0))
    arguments = problem(draw, (5, 6), (kernel, kernel), (1, 1), [half] * 4, (1, 1), 4)
    found = run(*arguments, mask=mask)
    assert [gradient is not None for gradient in found[2:]] == [mask[0], mask[0], mask[1], mask[1]]
    check_exact(found, truth(*arguments, mask=mask))


@pytest.mark.parametrize("kernel", [3, 7])
def test_empty_batch(kernel):
    half = kernel // 2
    draw = small_integers(torch.Generator().manual_seed(0))
    arguments = problem(draw, (5, 6), (kernel, kernel), (1, 1), [half] * 4, (1, 1), 4, batch=0)
    y, sums, grad_x, *others = run(*arguments)
    assert y.shape == grad_x.shape == (0, 4, 5, 6)
    assert sums.dtype == torch.float64
    assert not sums.any()
    assert [tuple(grad.shape) for grad in others] == [(2, 4), (4, 1, kernel, kernel), (4,)]
    assert not any(grad.any() for grad in others)


def test_any_strides_are_taken():
    draw = small_integers(torch.Generator().manual_seed(0))
    x, scale, shift, activation, weight, bias, geometry, grad, correction = problem(draw, (6, 8), (3, 3), *SAME, 3)
    wide = torch.zeros(2, 6, 6, 10)
    wide[:, ::2, :, 1:9] = x
    columns = torch.zeros(3, 1, 3, 6)
    columns[..., ::2] = weight
    found = depthwise_stage.forward(
        wide.to(DEVICE)[:, ::2, :, 1:9], *place(scale, shift), activation, columns.to(DEVICE)[..., ::2],
        bias.to(DEVICE), *geometry,
    )  # fmt: skip
    found += depthwise_stage.backward(
        grad.contiguous().to(DEVICE), found[0].contiguous(), correction.to(DEVICE), x.contiguous().to(DEVICE),
        *place(scale, shift), activation, columns.to(DEVICE)[..., ::2], True, *geometry, [True, True],
    )  # fmt: skip
    wanted = truth(x, scale, shift, activation, weight, bias, geometry, grad, correction)
    check_exact([tensor.cpu() for tensor in found], wanted)


def test_bits_repeat():
    arguments = problem(normal(torch.Generator().manual_seed(0)), (5, 4), (3, 3), *SAME, 4, activation="silu")
    first = run(*arguments)
    for _ in range(20 if DEVICE == "cuda" else 1):
        assert all(torch.equal(one, other) for one, other in zip(first, run(*arguments), strict=True))


@pytest.mark.parametrize("element_size", [2, 4])
def test_blocks_of_all_recorded_shapes(element_size):
    seen = 0
    for recording in recorded():
        if len(recording.spatial) > 2 or min(recording.output) < 1:
            continue
        stride, padding, dilation = (tuple(values) for values in recording.geometry)
        size, weight = (recording.batch, recording.channels, *recording.spatial), (recording.channels, 1)
        shape, _ = shape_of(size, (*weight, *recording.kernel), stride, padding, dilation)
        for blocks, transposed in (
            (tables.forward(shape, element_size), False),
            (tables.backward(shape, element_size), True),
        ):
            assert all(size & (size - 1) == 0 for size in (blocks.row_lanes, blocks.col_lanes, blocks.channels))
            assert blocks.row_lanes * blocks.col_lanes * blocks.channels <= 256
            assert 1 <= blocks.columns <= 8
            assert blocks.rows == 1 or (blocks.hoist and shape.rows.dilation == 1)
            tiles = launch._tiles(shape, blocks, transposed)
            assert tiles["residues"] <= max(1, shape.cols.size if transposed else shape.cols.output)
            seen += 1
    assert seen > 5_000
