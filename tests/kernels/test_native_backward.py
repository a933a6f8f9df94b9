"""The native gradients against the float64 reference: bit for bit on integers, within the rounding bound on floats."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

import dwsep
from dwsep.kernels import reference
from tests import problems
from tests.kernels.test_native import geometries

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
ALL = [True] * 3


def _in_layout(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else tensor


def _depthwise(problem: problems.Problem, draw, channels_last: bool):
    x, weight, _, bias, _ = problem.tensors(draw, channels_last)
    out = reference.depthwise_conv(x, weight, bias, *problem.geometry, "none")
    return _in_layout(draw(out.shape), channels_last), x, weight, bias


def _check_depthwise(problem: problems.Problem, generator: torch.Generator, channels_last: bool, activation: str):
    tensors = _depthwise(problem, problems.small_integers(generator), channels_last)
    grads = ops.depthwise_conv_backward(*tensors, *problem.geometry, activation, ALL)
    expected = reference.depthwise_conv_backward(*problems.double(tensors), *problem.geometry, activation, ALL)
    for name, grad, wanted in zip(("x", "weight", "bias"), grads, expected, strict=True):
        assert torch.equal(grad.double(), wanted), f"gradient of {name}, {activation}: {problem}"
    assert grads[0].stride() == tensors[1].stride() or tensors[1].numel() == 0


def _tiny_integers(generator: torch.Generator):
    """As small_integers, smaller yet: here products of three tensors are summed over all pixels."""
    return lambda shape: torch.randint(-2, 3, shape, generator=generator).float()


def _separable(problem: problems.Problem, draw, channels_last: bool):
    tensors = problem.tensors(draw, channels_last)
    out = reference.separable_conv(*tensors, *problem.geometry, "none", "none", "none")
    return _in_layout(draw(out.shape), channels_last), *tensors


def _check_separable(problem, generator, channels_last: bool, inner: str, activation: str, residual: str = "none"):
    tensors = _separable(problem, _tiny_integers(generator), channels_last)
    arguments = (*problem.geometry, inner, activation, residual, [True] * 5)
    grads = ops.separable_conv_backward(*tensors, *arguments)
    expected = reference.separable_conv_backward(*problems.double(tensors), *arguments)
    names = ("x", "depthwise weight", "pointwise weight", "depthwise bias", "pointwise bias")
    for name, grad, wanted in zip(names, grads, expected, strict=True):
        assert torch.equal(grad.double(), wanted), f"gradient of {name}, {inner}, {activation}, {residual}: {problem}"
    assert grads[0].stride() == tensors[1].stride() or tensors[1].numel() == 0


def check_recorded_exact(chosen: list[problems.Problem]) -> None:
    """Every problem in both layouts by turns, on the instruction set in use."""
    generator = torch.Generator().manual_seed(1)
    for index, problem in enumerate(chosen):
        _check_depthwise(problem, generator, index % 3 != 0, ("none", "relu", "none", "relu6")[index % 4])
        inner, outer = (("none", "none"), ("relu", "none"), ("relu6", "relu"))[index // 3 % 3]
        _check_separable(problem, generator, index % 3 != 0, inner, outer)


@pytest.mark.parametrize("isa", dwsep.ops.native_status().supported_isas)
def test_recorded_shapes_exact_on_integers(isa):
    # The path is fixed when the library is loaded, so each is a process of its own.
    script = "from tests import problems; from tests.kernels import test_native_backward as t; "
    script += "t.check_recorded_exact(problems.sample(400, seed=5)); import dwsep; print(dwsep.ops.native_status().isa)"
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "DWSEP_ISA": isa}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == isa


@settings(max_examples=300, deadline=None, derandomize=True)
@given(geometries())
def test_drawn_geometries_exact_on_integers(drawn):
    problem, channels_last, seed = drawn
    generator = torch.Generator().manual_seed(seed)
    _check_depthwise(problem, generator, channels_last, ("none", "relu6")[seed % 2])
    _check_separable(problem, generator, channels_last, ("none", "relu")[seed // 2 % 2], ("none", "relu6")[seed % 2])


@pytest.mark.parametrize("residual", ["depthwise", "input"])
@pytest.mark.parametrize("channels", [5, 16, 40])
@pytest.mark.parametrize("batch", [1, 5])
def test_residual_exact_on_integers(residual, channels, batch):
    generator = torch.Generator().manual_seed(3)
    problem = problems.Problem("", batch, channels, 1, channels, (9, 7), (3, 3), (1, 1), (2, 1), (2, 2, 1, 1))
    for channels_last in (False, True):
        _check_separable(problem, generator, channels_last, "relu", "relu6", residual)


@pytest.mark.parametrize("residual", ["none", "depthwise"])
def test_depth_multiplier_exact_on_integers(residual):
    generator = torch.Generator().manual_seed(4)
    for channels, multiplier in ((5, 3), (16, 2), (19, 4)):
        inner = channels * multiplier
        problem = problems.Problem("", 2, channels, multiplier, inner, (9, 7), (3, 3), (2, 1), (1, 2), (1, 1, 2, 2))
        _check_depthwise(problem, generator, True, "relu")
        _check_separable(problem, generator, True, "relu", "none", residual)


@pytest.mark.parametrize("mask", [[i == j for j in range(5)] for i in range(5)])
def test_each_gradient_alone_equals_it_among_all(mask):
    generator = torch.Generator().manual_seed(5)
    problem = problems.Problem("", 4, 19, 1, 21, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    tensors = _separable(problem, problems.normal(generator), True)
    arguments = (*problem.geometry, "silu", "none", "none")
    everything = ops.separable_conv_backward(*tensors, *arguments, [True] * 5)
    alone = ops.separable_conv_backward(*tensors, *arguments, mask)
    for wanted, full, grad in zip(mask, everything, alone, strict=True):
        assert torch.equal(grad, full) if wanted else grad.numel() == 0
