"""``expanded_stage_backward``: back through an expansion and its depthwise stage, against float64 autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

import dwsep
from dwsep.kernels.activations import FORWARD
from dwsep.ops import training_program
from dwsep.ops.training_program import ACTIVATIONS, Kind, Statistics
from tests.ops.test_training_program import _row
from tests.problems import last, threads

ops = torch.ops.dwsep
EPS = 1e-5


@dataclass
class Problem:
    """A pointwise convolution of ``x``, batch norm, activation, a depthwise convolution."""

    channels: int = 6
    expanded: int = 20
    size: tuple[int, int] = (9, 11)
    batch: int = 2
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "relu6"
    affine: bool = True  # whether x comes with scale and shift
    corrected: bool = True  # whether a norm follows
    bias: bool = False
    norm_weight: bool = True
    offset: float = 0.0  # of x, in standard deviations

    def draw(self) -> dict[str, Any]:
        n, k = self.channels, self.expanded
        x = last(torch.randn(self.batch, n, *self.size) + self.offset)
        scale, shift = (torch.rand(n) + 0.5, torch.randn(n)) if self.affine else (None, None)
        weight, depthwise = torch.randn(k, n, 1, 1), torch.randn(k, 1, *self.kernel)
        gamma, beta = (torch.rand(k) + 0.5 if self.norm_weight else None), torch.randn(k)
        wide, sums = ops.pointwise_stage(x, scale, shift, "none", weight, None)
        pixels = x.numel() // n
        norm = ops.stage_statistics(sums, pixels, gamma, beta, EPS, 0.1, None, None)
        geometry = (list(self.stride), list(self.padding), list(self.dilation))
        bias = torch.randn(k) if self.bias else None
        y, _ = ops.depthwise_stage(wide, *norm[:2], self.activation, depthwise, bias, *geometry)
        correction = torch.randn(2, k) * 0.1 if self.corrected else None
        return {
            "grad": last(torch.randn_like(y)), "y": y, "correction": correction, "x": x, "scale": scale, "shift": shift,
            "weight": weight, "expanded": wide, "expanded_scale": norm[0], "expanded_shift": norm[1], "mean": norm[2],
            "invstd": norm[3], "norm_weight": gamma, "activation": self.activation, "depthwise_weight": depthwise,
            "has_bias": self.bias, "stride": geometry[0], "padding": geometry[1], "dilation": geometry[2],
            "wants_x": True,
        }, beta, bias  # fmt: skip


def exactly(given: dict[str, Any], beta: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The gradients by float64 autograd, in the operator's order."""

    def leaf(value: Tensor | None) -> Tensor:
        return torch.zeros(0).double() if value is None else value.double().requires_grad_()

    x, weight, depthwise, beta = (leaf(t) for t in (given["x"], given["weight"], given["depthwise_weight"], beta))
    gamma = given["norm_weight"]
    gamma = leaf(torch.ones(len(beta)) if gamma is None else gamma)
    scale, shift, bias_leaf = leaf(given["scale"]), leaf(given["shift"]), leaf(bias)
    z = x if given["scale"] is None else x * scale[:, None, None] + shift[:, None, None]
    z.retain_grad()
    normed = F.batch_norm(F.conv2d(z, weight), None, None, gamma, beta, True, 0.0, EPS)
    top, bottom, left, right = given["padding"]
    padded = F.pad(FORWARD[given["activation"]](normed), (left, right, top, bottom))
    y = F.conv2d(padded, depthwise, bias_leaf if given["has_bias"] else None, tuple(given["stride"]), 0,
                 tuple(given["dilation"]), len(beta))  # fmt: skip
    grad = given["grad"].double()
    if given["correction"] is not None:
        first, second = given["correction"].double()[:, :, None, None]
        grad = grad + first * given["y"].double() + second
    (y * grad).sum().backward()
    assert z.grad is not None
    affine = torch.zeros(0).double()
    if given["scale"] is not None:
        wide = z.grad
        affine = torch.stack([(wide * x.detach()).sum((0, 2, 3)), wide.sum((0, 2, 3))])
    leaves = (x, weight, gamma, beta, depthwise, bias_leaf)
    of = [torch.zeros(0).double() if leaf.grad is None else leaf.grad for leaf in leaves]
    return [of[0], affine, *of[1:]]


def distances(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
    return [
        float((one.double() - other).norm() / (other.norm() + 1e-3 * (other.numel() + 1) ** 0.5))
        for one, other in zip(found, expected, strict=True)
    ]


def one_by_one(given: dict[str, Any]) -> list[Tensor]:
    """The two stages' own operators."""
    wide = (given["expanded"], given["expanded_scale"], given["expanded_shift"], given["activation"])
    geometry = (given["stride"], given["padding"], given["dilation"])
    of_wide, affine, of_depthwise, of_bias = ops.depthwise_stage_backward(
        given["grad"], given["y"], given["correction"], *wide, given["depthwise_weight"], given["has_bias"], *geometry,
        [True, True],
    )  # fmt: skip
    pixels = given["x"].numel() // given["x"].shape[1]
    own, of_gamma, of_beta = ops.stage_correction(affine, given["mean"], given["invstd"], given["norm_weight"], pixels)
    of_x, of_affine, of_weight, _ = ops.pointwise_stage_backward(
        of_wide, given["expanded"], own, given["x"], given["scale"], given["shift"], "none", given["weight"], False,
        [True, True],
    )  # fmt: skip
    return [of_x, of_affine, of_weight, of_gamma, of_beta, of_depthwise, of_bias]


PROBLEMS = {
    "plain": Problem(affine=False),
    "affine": Problem(),
    "stride": Problem(stride=(2, 2), size=(12, 10), activation="silu"),
    "5x5, stride": Problem(kernel=(5, 5), stride=(2, 1), padding=(2, 2, 2, 2), activation="hardswish"),
    "dilation": Problem(dilation=(2, 3), padding=(2, 2, 3, 3), activation="gelu"),
    "one sided padding": Problem(padding=(0, 1, 2, 0), stride=(2, 2), activation="relu"),
    "no activation": Problem(activation="none", bias=True),
    "no norm behind": Problem(corrected=False, affine=False, bias=True),
    "norm without weight": Problem(norm_weight=False),
    "many channels": Problem(channels=40, expanded=100, size=(14, 14)),
    "two input channels": Problem(channels=2, expanded=3, size=(5, 4)),
    "kernel beyond the image": Problem(kernel=(7, 9), padding=(3, 3, 4, 4), size=(4, 3)),
    "long rows, whose channels do not fit the cache": Problem(expanded=40, size=(3, 4000), batch=1),
    "as in a network": Problem(channels=16, expanded=96, size=(56, 56), stride=(2, 2)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_autograd(name):
    torch.manual_seed(len(name))
    given, beta, bias = PROBLEMS[name].draw()
    expected = exactly(given, beta, bias)
    found = distances(list(ops.expanded_stage_backward(**given)), expected)
    assert max(found) < 2e-5, found
    # No farther than the stages one by one, up to chance.
    for own, other in zip(found, distances(one_by_one(given), expected), strict=True):
        assert own < 2 * other + 1e-6
    without = list(ops.expanded_stage_backward(**{**given, "wants_x": False}))
    assert [t.numel() for t in without[:2]] == [0, 0]
    assert max(distances(without[2:], expected[2:])) < 2e-5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_autograd_for_drawn_problems(data):
    kernel, stride, dilation = (data.draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (5, 3, 3))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = data.draw(st.tuples(st.integers(reach[0] + 4, reach[0] + 9), st.integers(reach[1] + 4, reach[1] + 9)))
    problem = Problem(
        *data.draw(st.tuples(st.integers(4, 20), st.integers(1, 40))),
        size,
        data.draw(st.integers(1, 3)),
        kernel,
        stride,
        data.draw(st.tuples(*[st.integers(0, 3)] * 4)),
        dilation,
        data.draw(st.sampled_from(["none", "relu", "silu"])),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    torch.manual_seed(0)
    given, beta, bias = problem.draw()
    # A channel without spread makes gradients of any size; and of few inputs little is left of them.
    if (given["invstd"] > 30).any():
        return
    expected = exactly(given, beta, bias)
    found = distances(list(ops.expanded_stage_backward(**given)), expected)
    other = distances(one_by_one(given), expected)
    assert all(a < 4 * b + 2e-5 for a, b in zip(found, other, strict=True)), (found, other)


@pytest.mark.parametrize("affine", [True, False])
def test_inputs_far_from_zero(affine):
    torch.manual_seed(0)
    given, beta, bias = Problem(24, 96, (40, 40), affine=affine, offset=100.0).draw()
    expected = exactly(given, beta, bias)
    found, other = (
        distances(list(ops.expanded_stage_backward(**given)), expected),
        distances(one_by_one(given), expected),
    )
    assert all(a < 2 * b + 1e-6 for a, b in zip(found, other, strict=True)), (found, other)


def test_threads_and_repeats_are_bit_identical():
    given, _, _ = Problem(24, 72, (23, 21), batch=5).draw()
    results = []
    for count in (1, 2, 3, 5, 2, 2):
        with threads(count):
            results.append(ops.expanded_stage_backward(**given))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck():
    for problem in (Problem(), Problem(affine=False, corrected=False, bias=True, norm_weight=False)):
        given, _, _ = problem.draw()
        for wants_x in (True, False):
            opcheck(ops.expanded_stage_backward, tuple({**given, "wants_x": wants_x}.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(20, 5, 1, 1)}, "pointwise weight"),
        ({"expanded": last(torch.ones(2, 20, 9, 10))}, "pixels of x"),
        ({"grad": last(torch.ones(2, 20, 9, 10))}, "grad"),
        ({"mean": torch.ones(19)}, "mean"),
        ({"correction": torch.ones(2, 19)}, "correction"),
        ({"depthwise_weight": torch.ones(40, 1, 3, 3)}, "multiplier"),
    ],
)
@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}")
def test_what_does_not_fit(change, message):
    given, _, _ = Problem().draw()
    with pytest.raises(RuntimeError, match=message):
        ops.expanded_stage_backward(**{**given, **change})


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}")
@pytest.mark.parametrize("statistics", list(Statistics))
@pytest.mark.parametrize("affine", [True, False])
def test_programs_use_it_where_tensors_are_large(statistics, affine):
    """A norm or none, the expansion, the depthwise convolution, each with a norm; 10 MB of the expanded tensor."""
    torch.manual_seed(0)
    geometry = {"stride_h": 2, "stride_w": 2} | {f"pad_{side}": 1 for side in ("top", "bottom", "left", "right")}
    rows = [
        _row(Kind.NORM, 0, 1, norm=0 if affine else -1),
        _row(Kind.CONV, 1, 2, weight=0, norm=1, norm_weight=1, norm_bias=2),
        _row(Kind.CONV, 2, 3, weight=3, norm=2, depthwise=1, **geometry),
        _row(Kind.OUTPUT, 3, 4),
    ]
    table = [number for row in rows for number in row]
    activations = [ACTIVATIONS.index(name) for name in ("none", "none", "relu6", "none", "none")]
    norms = [value for _ in range(3) for value in (float(statistics), EPS, 0.1)]
    x = last(torch.randn(2, 16, 112, 112))
    parameters = [torch.randn(96, 16, 1, 1), torch.rand(96) + 0.5, torch.randn(96), torch.randn(96, 1, 3, 3)]
    running = [part for n in (16, 96, 96) for part in (torch.zeros(n), torch.ones(n))]
    made = ops.training_program([x], parameters, running, table, activations, norms)
    grads = [last(torch.randn(2, 96, 56, 56))]
    rest = ([x], parameters, made, table, activations, norms, [4], [True] * 5)
    found = ops.training_program_backward(grads, *rest)
    expected = training_program._backward(grads, *rest)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    if statistics is not Statistics.RUNNING and dwsep.ops.native_status().isa != "portable":
        # Sums in another order: had the stages run one by one, as in the reference, all of it would be the same. With
        # narrow vectors more rows are at work, and leave too little room in the cache.
        assert not torch.equal(found[1], expected[1])
    # Without the gradient of the expansion's weight there is nothing to spare.
    wants = [True, False, True, True, True]
    found = ops.training_program_backward(grads, *rest[:-1], wants)
    expected = training_program._backward(grads, *rest[:-1], wants)
    for one, other in zip(found, expected, strict=True):
        assert one.numel() == other.numel()
        assert (one - other).norm() <= 1e-5 * other.norm()
