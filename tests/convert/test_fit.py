"""Factors of dense weights: exact at full rank, best below, better with what is known of the inputs."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from dwsep.convert import fit as fitting
from dwsep.convert._gram import PatchMoments
from dwsep.geometry import ConvGeometry
from tests.convert.toys import images

ORDERS = fitting.ORDERS


def moments(x, size, **options):
    sums = PatchMoments(x.shape[1], ConvGeometry.make(x.dim() - 2, size, **options))
    sums.add(x)
    return sums.moments()


def output_error(factors, weight, x):
    """Of real convolutions, the mean error taken out."""
    wanted = F.conv2d(x, weight, padding=1)
    error = F.conv2d(x, fitting.dense(factors), padding=1) - wanted
    error = error - error.mean((0, 2, 3), keepdim=True)
    return float(error.norm() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).norm())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(k, k) for k in range(1, 8)] + [(1, 5), (4, 2), (7,), (3, 3, 3)])
def test_full_rank_reproduces_the_weight(order, size):
    for outputs, channels in ((6, 5), (3, 2), (60, 51), (1, 1)):
        weight = torch.randn(outputs, channels, *size)
        factors = fitting.fit(weight, fitting.largest_rank(weight, order), order=order)
        torch.testing.assert_close(fitting.dense(factors), weight, rtol=1e-5, atol=1e-5)
        assert factors.weight_error < 1e-6
        assert factors.depthwise.dtype == weight.dtype


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(3, 3), (5, 5), (2, 3), (9,)])
def test_error_is_the_tail_of_the_singular_values(order, size):
    weight = torch.randn(14, 11, *size, dtype=torch.float64)
    tails = fitting.tails(weight, order)
    best = fitting.largest_rank(weight, order)
    assert len(tails) == best + 1
    assert tails[0] == pytest.approx(1)
    assert tails[-1] == 0
    assert (tails.diff() < 0).all()
    made = []
    for rank in range(1, best + 1):
        factors = fitting.fit(weight, rank, order=order)
        error = (fitting.dense(factors) - weight).norm() / weight.norm()
        assert float(error) == pytest.approx(factors.weight_error, abs=1e-12)
        assert factors.weight_error == pytest.approx(float(tails[rank]), abs=1e-7)
        made.append(factors.weight_error)
    assert made == sorted(made, reverse=True)


def test_tails_equal_numpys_singular_values():
    weight = torch.randn(7, 4, 3, 2)
    squares = sum(torch.linalg.svdvals(weight[:, c].flatten(1).double()) ** 2 for c in range(4))
    wanted = torch.tensor([float(squares[r:].sum() / squares.sum()) ** 0.5 for r in range(7)], dtype=torch.float64)
    torch.testing.assert_close(fitting.tails(weight), wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_fitting_outputs_beats_the_decomposition_on_inputs_held_out(order):
    x, held = images(12, 12, 20, seed=1), images(12, 12, 20, seed=2)
    known = moments(x, 3, padding=1)
    for seed in range(3):
        weight = torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(seed))
        for rank in (1, 2, 4):
            plain = fitting.fit(weight, rank, order=order)
            fitted = fitting.fit(weight, rank, order=order, moments=known)
            assert output_error(fitted, weight, held) < 0.9 * output_error(plain, weight, held)


@pytest.mark.parametrize("order", ORDERS)
def test_no_sweep_makes_the_error_larger_and_the_error_is_measured(order):
    x = images(12, 10, 18)
    known = moments(x, 3, padding=1)
    weight = torch.randn(14, 10, 3, 3)
    for rank in (1, 3):
        errors = []
        for sweeps in range(5):
            factors = fitting.fit(weight, rank, order=order, moments=known, sweeps=sweeps)
            errors.append(factors.output_error)
            # the moments are pulled towards independent elements by half a per cent
            assert factors.output_error == pytest.approx(output_error(factors, weight, x), rel=0.05)
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
        assert errors[-1] < 0.999 * errors[0]


def test_pointwise_factor_solves_its_least_squares_problem():
    x = images(6, 6, 12)
    weight = torch.randn(8, 6, 3, 3, dtype=torch.float64)
    known = moments(x.double(), 3)
    factors = fitting.fit(weight, 2, moments=known, sweeps=0)
    values, vectors = torch.linalg.eigh(known.gram)
    root = vectors * values.clamp_min(0).sqrt()
    depthwise = factors.depthwise.flatten(1)
    inner = torch.zeros(12, 54, dtype=torch.float64)
    for row in range(12):
        inner[row, row // 2 * 9 : row // 2 * 9 + 9] = depthwise[row]
    best = torch.linalg.lstsq((inner @ root).mT, (weight.flatten(1) @ root).mT).solution.mT
    torch.testing.assert_close(factors.pointwise.flatten(1), best, rtol=1e-5, atol=1e-6)


def test_errors_of_all_ranks_at_once():
    known = moments(images(12, 10, 18), 3, padding=1)
    weight = torch.randn(14, 10, 3, 3)
    errors = fitting.output_tails(weight, known, 7)
    assert errors[0] == 1
    assert (errors.diff() < 0).all()
    for rank in range(1, 8):
        wanted = fitting.fit(weight, rank, moments=known, sweeps=0).output_error
        assert float(errors[rank]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_shift_puts_the_mean_back(order):
    x = images(8, 9, 16)
    weight = torch.randn(10, 9, 3, 3)
    factors = fitting.fit(weight, 1, order=order, moments=moments(x, 3))
    error = F.conv2d(x, weight) - F.conv2d(x, fitting.dense(factors))
    torch.testing.assert_close(error.mean((0, 2, 3)), factors.shift, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_channels_that_are_zero_or_alike_do_no_harm(order, rank):
    x = images(4, 9, 12)
    x[:, 2] = 0  # a dead channel, as behind a ReLU
    x[:, 4] = x[:, 5]
    weight = torch.randn(9, 9, 3, 3)
    weight[3] = 0
    weight[:, 1] = 0
    for known in (None, moments(x, 3)):
        factors = fitting.fit(weight, rank, order=order, moments=known)
        assert factors.depthwise.isfinite().all()
        assert factors.pointwise.isfinite().all()
        assert factors.weight_error < 1
    zero = fitting.fit(torch.zeros(4, 9, 3, 3), 2, order=order, moments=moments(x, 3))
    assert fitting.dense(zero).abs().max() == 0
    assert zero.weight_error == zero.output_error == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_stays_and_its_rounding_is_in_the_error(dtype):
    weight = torch.randn(8, 8, 3, 3).to(dtype)
    factors = fitting.fit(weight, 8)
    assert factors.depthwise.dtype == factors.pointwise.dtype == fitting.dense(factors).dtype == dtype
    low, high = {torch.bfloat16: (1e-4, 1e-2), torch.float16: (1e-5, 1e-3), torch.float64: (0, 1e-10)}[dtype]
    assert low <= factors.weight_error <= high


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda w: fitting.fit(w, 0), ValueError, "rank must be between 1 and 9, got 0"),
        (lambda w: fitting.fit(w, 10), ValueError, "rank must be between 1 and 9, got 10"),
        (lambda w: fitting.fit(w, 2, order="both"), ValueError, "order: unknown name 'both'"),
        (lambda w: fitting.fit(w[0, 0], 2), ValueError, r"weight must have shape \(K, C, \*taps\)"),
        (lambda w: fitting.fit(w.int(), 2), TypeError, "weight must be a floating-point tensor"),
        (
            lambda w: fitting.fit(w, 2, moments=moments(images(1, 3, 9), 3)),
            ValueError,
            "moments must be of 90 elements",
        ),
    ],
)
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call(torch.randn(12, 10, 3, 3))
