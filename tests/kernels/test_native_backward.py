"""The native gradients against the float64 reference: bit for bit on integers, within the rounding bound on floats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import dwsep
from dwsep.kernels import reference
from tests import isas, problems
from tests.kernels.test_native import DTYPES, geometries

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
ALL = [True] * 3


def _in_layout(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else tensor


def _depthwise(problem: problems.Problem, draw, channels_last: bool):
    x, weight, _, bias, _ = problem.tensors(draw, channels_last)
    grad = draw((problem.batch, problem.channels * problem.multiplier, *problem.output))
    return _in_layout(grad, channels_last), x, weight, bias


def _check_depthwise(problem, generator, channels_last: bool, activation: str, dtype: torch.dtype = torch.float32):
    tensors = _depthwise(problem, problems.small_integers(generator, dtype), channels_last)
    grads = ops.depthwise_conv_backward(*tensors, *problem.geometry, activation, ALL)
    expected = problems.in_float64(reference.depthwise_conv_backward, tensors, *problem.geometry, activation, ALL)
    for name, grad, wanted in zip(("x", "weight", "bias"), grads, expected, strict=True):
        assert problems.exact(grad, wanted), f"gradient of {name}, {activation}, {dtype}, {channels_last=}: {problem}"
    assert grads[0].stride() == tensors[1].stride() or tensors[1].numel() == 0


def _separable(problem: problems.Problem, draw, channels_last: bool):
    tensors = problem.tensors(draw, channels_last)
    grad = draw((problem.batch, problem.out_channels, *problem.output))
    return _in_layout(grad, channels_last), *tensors


def _check_separable(
    problem: problems.Problem,
    generator: torch.Generator,
    channels_last: bool,
    activations: tuple[str, str],
    residual: str = "none",
    dtype: torch.dtype = torch.float32,
) -> None:
    # Smaller than elsewhere: products of three tensors are summed over all pixels.
    tensors = _separable(problem, problems.small_integers(generator, dtype, top=2), channels_last)
    arguments = (*problem.geometry, *activations, residual, [True] * 5)
    grads = ops.separable_conv_backward(*tensors, *arguments)
    expected = problems.in_float64(reference.separable_conv_backward, tensors, *arguments)
    names = ("x", "depthwise weight", "pointwise weight", "depthwise bias", "pointwise bias")
    for name, grad, wanted in zip(names, grads, expected, strict=True):
        case = f"gradient of {name}, {activations}, {residual}, {dtype}, {channels_last=}: {problem}"
        assert problems.exact(grad, wanted), case
    assert grads[0].stride() == tensors[1].stride() or tensors[1].numel() == 0


def check_recorded_exact(chosen: list[problems.Problem]) -> None:
    """Every problem in both types, and in both layouts by turns, on the instruction set in use."""
    generator = torch.Generator().manual_seed(1)
    for index, problem in enumerate(chosen):
        for dtype in DTYPES:
            activation = ("none", "relu", "none", "relu6")[index % 4]
            _check_depthwise(problem, generator, index % 3 != 0, activation, dtype)
            activations = (("none", "none"), ("relu", "none"), ("relu6", "relu"))[index // 3 % 3]
            _check_separable(problem, generator, index % 3 != 0, activations, dtype=dtype)


def check_large_exact() -> None:
    """Tensors of 4 MB, which are stored past the caches, and of 24 MB together, asked for and read by rows."""

    def problem(channels: int, spatial: tuple[int, ...], size: int, dilation: int = 1, stride: int = 1, batch: int = 2):
        ndim = len(spatial)
        padding = (dilation * (size - 1) // 2,) * (2 * ndim)
        return problems.Problem(
            "large", batch, channels, 1, 1, spatial, (size,) * ndim, (stride,) * ndim, (dilation,) * ndim, padding
        )

    chosen = [
        problem(256, (46, 46), 3),
        problem(250, (47, 47), 3, batch=4),
        problem(256, (46, 46), 3, dilation=2),
        problem(256, (46, 46), 3, stride=2),
        problem(128, (65, 65), 5, batch=4),
        problem(256, (46, 46), 7, batch=4),
        problem(300, (2048,), 9),
        problem(300, (2048,), 4),
        problem(520, (1024,), 31),
        problem(64, (8, 33, 33), 3),
        problems.Problem("large", 8, 40, 1, 1, (9, 30, 35), (2, 3, 3), (1,) * 3, (2, 1, 2), (1, 1, 1, 1, 0, 3)),
    ]
    generator = torch.Generator().manual_seed(6)
    draw = problems.small_integers(generator, torch.float32, top=1)
    for large in chosen:
        for channels_last in (True, False):
            grad, x, weight, bias = _depthwise(large, draw, channels_last)
            wanted = problems.in_float64(reference.depthwise_conv, (x, weight, bias), *large.geometry, "relu")
            assert problems.exact(ops.depthwise_conv(x, weight, bias, *large.geometry, "relu"), wanted), large
            tensors = (grad, x, weight, bias)
            expected = problems.in_float64(reference.depthwise_conv_backward, tensors, *large.geometry, "none", ALL)
            for threads in (1, 3):
                with problems.threads(threads):
                    grads = ops.depthwise_conv_backward(*tensors, *large.geometry, "none", ALL)
                for got, value in zip(grads, expected, strict=True):
                    assert problems.exact(got, value), f"{channels_last=}, {threads} threads: {large}"


@pytest.mark.parametrize("isa", isas.USUAL)
def test_large_tensors_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_backward as t; t.check_large_exact()")


@pytest.mark.parametrize(
    "batch, out_channels, spatial, stride, activation, threads",
    [(5, 40, (96, 87), 1, "relu", 3), (4, 72, (101, 100), 2, "none", 1), (2, 40, (90, 130), 1, "none", 3)],
)
def test_large_separable_exact_on_integers(batch, out_channels, spatial, stride, activation, threads):
    """Images of several tiles, whose input gradient is stored past the caches; the first two take 24 MB together."""
    shape = (batch, 64, 1, out_channels, spatial)
    large = problems.Problem("large", *shape, (3, 3), (stride, stride), (1, 1), (1, 1, 1, 1))
    with problems.threads(threads):
        _check_separable(large, torch.Generator().manual_seed(8), True, (activation, "none"))


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_recorded_shapes_exact_on_integers(isa):
    script = "from tests import problems; from tests.kernels import test_native_backward as t; "
    isas.run_on(isa, script + "t.check_recorded_exact(problems.sample(400, seed=5))")


@pytest.mark.sweep
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_all_recorded_shapes_exact_on_integers(isa):
    script = "from tests import problems; from tests.kernels import test_native_backward as t; "
    isas.run_on(isa, script + "t.check_recorded_exact(list(problems.recorded()))")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(geometries())
def test_drawn_geometries_exact_on_integers(drawn):
    problem, channels_last, seed = drawn
    generator, dtype = torch.Generator().manual_seed(seed), DTYPES[seed // 4 % 2]
    activations = ("none", "relu")[seed // 2 % 2], ("none", "relu6")[seed % 2]
    _check_depthwise(problem, generator, channels_last, activations[1], dtype)
    _check_separable(problem, generator, channels_last, activations, dtype=dtype)


def check_few_pixels_exact() -> None:
    """Few pixels by many channels, which go by groups of these; by their tails, strides and in many images, too."""
    generator = torch.Generator().manual_seed(8)
    one, two, around = (1, 1), (2, 1), (1, 1, 1, 1)
    for batch in (1, 3, 9):
        for channels, out_channels in ((512, 72), (250, 130), (530, 530)):
            geometry = (
                ((4, 3), (3, 3), one, one, around) if channels != 250 else ((7, 5), (3, 3), two, two, (2, 1, 0, 1))
            )
            problem = problems.Problem("few pixels", batch, channels, 1, out_channels, *geometry)
            for dtype in DTYPES:
                _check_separable(problem, generator, True, ("relu", "relu6"), dtype=dtype)
            residual = "depthwise" if channels == out_channels else "none"
            _check_separable(problem, generator, False, ("none", "none"), residual)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_few_pixels_by_many_channels_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_backward as t; t.check_few_pixels_exact()")


@pytest.mark.parametrize("residual", ["depthwise", "input"])
@pytest.mark.parametrize("channels", [5, 16, 40])
@pytest.mark.parametrize("batch", [1, 5])
def test_residual_exact_on_integers(residual, channels, batch):
    generator = torch.Generator().manual_seed(3)
    problem = problems.Problem("", batch, channels, 1, channels, (9, 7), (3, 3), (1, 1), (2, 1), (2, 2, 1, 1))
    for channels_last in (False, True):
        _check_separable(problem, generator, channels_last, ("relu", "relu6"), residual)


@pytest.mark.parametrize("residual", ["none", "depthwise"])
def test_depth_multiplier_exact_on_integers(residual):
    generator = torch.Generator().manual_seed(4)
    for channels, multiplier in ((5, 3), (16, 2), (19, 4)):
        inner = channels * multiplier
        problem = problems.Problem("", 2, channels, multiplier, inner, (9, 7), (3, 3), (2, 1), (1, 2), (1, 1, 2, 2))
        _check_depthwise(problem, generator, True, "relu")
        _check_separable(problem, generator, True, ("relu", "none"), residual)


@pytest.mark.parametrize("channels", [19, 513])  # by image, and by groups of channels
@pytest.mark.parametrize("mask", [[i == j for j in range(5)] for i in range(5)])
def test_each_gradient_alone_equals_it_among_all(mask, channels):
    generator = torch.Generator().manual_seed(5)
    problem = problems.Problem("", 4, channels, 1, 21, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    tensors = _separable(problem, problems.normal(generator), True)
    arguments = (*problem.geometry, "silu", "none", "none")
    everything = ops.separable_conv_backward(*tensors, *arguments, [True] * 5)
    alone = ops.separable_conv_backward(*tensors, *arguments, mask)
    for wanted, full, grad in zip(mask, everything, alone, strict=True):
        assert torch.equal(grad, full) if wanted else grad.numel() == 0


PLAIN = ("none", "none", "none")


def test_recorded_shapes_within_the_bound_on_floats():
    generator = torch.Generator().manual_seed(2)
    for index, problem in enumerate(problems.sample(200, seed=11)):
        tensors = _separable(problem, problems.normal(generator), channels_last=index % 2 == 0)
        arguments = (*problem.geometry, *PLAIN, [True] * 5)
        grads = ops.separable_conv_backward(*tensors, *arguments)
        expected = problems.in_float64(reference.separable_conv_backward, tensors, *arguments)
        magnitudes = tuple(tensor.abs() for tensor in tensors)
        scales = problems.in_float64(reference.separable_conv_backward, magnitudes, *arguments)
        out_pixels = tensors[0].numel() // tensors[0].shape[1]
        # The longest chain of additions behind any gradient: all output channels, taps, and pixels.
        terms = tensors[0].shape[1] + tensors[2][0].numel() + out_pixels + tensors[1].shape[0]
        for grad, wanted, scale in zip(grads, expected, scales, strict=True):
            assert ((grad.double() - wanted).abs() <= terms * 2**-24 * scale).all(), problem


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish", "gelu"])
def test_activation_gradient_matches_float64(activation):
    x = torch.cat([torch.linspace(-12, 12, 9998), torch.tensor([0.0, 6.0])]).view(1, 1, 100, 100)
    grad = torch.linspace(0.5, 2, 10000).view(1, 1, 100, 100)
    one = torch.ones(1, 1, 1, 1)
    rest = ([1, 1], [0] * 4, [1, 1], activation, [True, False, False])
    actual = ops.depthwise_conv_backward(grad, x, one, None, *rest)[0]
    expected = reference.depthwise_conv_backward(grad.double(), x.double(), one.double(), None, *rest)[0]
    torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-6)


def test_bfloat16_accumulates_in_float32_and_rounds_once():
    generator = torch.Generator().manual_seed(4)
    for channels_last, channels, multiplier in ((True, 24, 1), (False, 19, 1), (True, 5, 2)):
        problem = problems.Problem("", 5, channels, multiplier, 21, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        tensors = tuple(t.bfloat16() for t in _separable(problem, problems.normal(generator), channels_last))
        arguments = (*problem.geometry, *PLAIN, [True] * 5)
        exact = reference.separable_conv_backward(*problems.double(tensors), *arguments)
        grad, x, weight, _, bias, _ = tensors
        # Where products are of pairs, the depthwise output that the pointwise weight meets is rounded, as a tensor is.
        exact = list(exact)
        if dwsep.ops.native_status().isa in isas.BFLOAT16:
            inner = reference.depthwise_conv(*problems.double((x, weight, bias)), *problem.geometry, "none")
            exact[2] = torch.einsum("nkhw,nchw->kc", grad.double(), inner.bfloat16().double())[..., None, None]
        found = ops.separable_conv_backward(*tensors, *arguments)
        for index, (result, wanted) in enumerate(zip(found, exact, strict=True)):
            assert result.dtype == torch.bfloat16
            # One rounding of a sum which float32 has within a few of its own units; between two of bfloat16, the
            # depthwise output may become the other.
            slack = 5e-2 if index == 2 else 1e-3
            assert ((result.double() - wanted).abs() <= 2.0**-8 * wanted.abs() * 1.01 + slack).all(), index
        grad = _in_layout(torch.randn(5, channels * multiplier, 9, 9).bfloat16(), channels_last)
        arguments = (*problem.geometry, "none", ALL)
        exact = reference.depthwise_conv_backward(*problems.double((grad, x, weight, bias)), *arguments)
        for result, wanted in zip(ops.depthwise_conv_backward(grad, x, weight, bias, *arguments), exact, strict=True):
            assert ((result.double() - wanted).abs() <= 2.0**-8 * wanted.abs() * 1.01 + 1e-3).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_of_bfloat16_trains(autocast):
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 16, 5, stride=2)
    exact = dwsep.nn.DepthwiseSeparableConv2d(8, 16, 5, stride=2).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 12, 12)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
    else:
        layer, x = layer.bfloat16(), x.bfloat16()
        out = layer(x)
    out.float().square().sum().backward()
    exact(x.double()).square().sum().backward()
    for got, expected in zip(layer.parameters(), exact.parameters(), strict=True):
        distance = (got.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert distance < 0.02


def test_gradient_of_any_strides():
    generator = torch.Generator().manual_seed(7)
    problem = problems.Problem("", 2, 19, 1, 21, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    tensors = _separable(problem, problems.small_integers(generator), True)
    x, depthwise = tensors[1:3]
    arguments = (*problem.geometry, "none", ALL)
    for grad in (
        torch.ones(1).expand(x.shape),
        problems.small_integers(generator)((2, 19, 8, 18))[..., ::2],
        problems.small_integers(generator)((9, 8, 19, 2)).permute(3, 2, 1, 0),
    ):
        expected = ops.depthwise_conv_backward(grad.contiguous(), x, depthwise, None, *arguments)
        for a, b in zip(ops.depthwise_conv_backward(grad, x, depthwise, None, *arguments), expected, strict=True):
            assert torch.equal(a, b)


def test_empty_batch_gives_zero_parameter_gradients():
    x, depthwise, pointwise = torch.ones(0, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
    geometry = ([1, 1], [1] * 4, [1, 1])
    grads = ops.separable_conv_backward(
        torch.ones(0, 6, 5, 5), x, depthwise, pointwise, torch.ones(4), torch.ones(6), *geometry, *PLAIN, [True] * 5
    )
    assert grads[0].shape == x.shape
    assert all(not grad.any() for grad in grads[1:])
    grads = ops.depthwise_conv_backward(x, x, depthwise, torch.ones(4), *geometry, "none", ALL)
    assert not grads[1].any()
    assert not grads[2].any()


def test_operators_called_directly_refuse_what_they_cannot_run():
    x, depthwise, pointwise = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
    geometry = ([1, 1], [1] * 4, [1, 1])
    for grad, words in ((torch.ones(1, 6, 5, 4), "shape"), (torch.ones(1, 6, 5, 5).double(), "dtype")):
        with pytest.raises(RuntimeError, match=words):
            ops.separable_conv_backward(grad, x, depthwise, pointwise, None, None, *geometry, *PLAIN, [True] * 5)
        with pytest.raises(RuntimeError, match=words):
            ops.depthwise_conv_backward(grad[:, :4], x, depthwise, None, *geometry, "none", ALL)
    with pytest.raises(RuntimeError, match="output_mask"):
        ops.depthwise_conv_backward(x, x, depthwise, None, *geometry, "none", [True])
