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


def check_recorded_exact(chosen: list[problems.Problem]) -> None:
    """Every problem in both layouts by turns, on the instruction set in use."""
    generator = torch.Generator().manual_seed(1)
    for index, problem in enumerate(chosen):
        _check_depthwise(problem, generator, index % 3 != 0, ("none", "relu", "none", "relu6")[index % 4])


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
    _check_depthwise(problem, torch.Generator().manual_seed(seed), channels_last, ("none", "relu6")[seed % 2])
