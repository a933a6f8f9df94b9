"""Separable factors of a dense convolution's weight: tensors in, tensors and measured errors out.

A dense weight (K, C, *taps) holds a matrix of K x T per input channel, T being the number of taps. A separable layer
with depth multiplier R is any such set of matrices of rank R, so singular values give the best one, and R = T loses
nothing. With the pointwise factor first the matrices are those of C x T per output channel. Where the second moments of
the input patches are known, the error of the layer's output is made small instead of the weight's: a bilinear least
squares problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import check_int

ORDERS = ("depthwise_first", "pointwise_first")
# The bilinear forms: k output channel, c input channel, t tap, r rank. "pointwise" and "depthwise" are the derivatives.
_FORMS = {
    "depthwise_first": {"whole": "kcr,crt->kct", "pointwise": "kct,crt->kcr", "depthwise": "kcr,kct->crt"},
    "pointwise_first": {"whole": "krc,krt->kct", "pointwise": "kct,krt->krc", "depthwise": "krc,kct->krt"},
}
_STEPS = 4  # of conjugate gradients per half step: more change the error in its third digit


class Moments(NamedTuple):
    """What is known of a layer's input patches p, each C * T elements, channel by channel.

    Attributes:
        gram: (C * T, C * T), float64: the mean of p p^T, or of (p - mean)(p - mean)^T.
        mean: (C * T,), float64: the mean of p.
    """

    gram: Tensor
    mean: Tensor


class Factors(NamedTuple):
    """A separable layer's weights, and what they lose.

    Attributes:
        order: ``"depthwise_first"`` or ``"pointwise_first"``.
        rank: R.
        depthwise: (C * R, 1, *taps); with the pointwise factor first (K * R, 1, *taps).
        pointwise: (K, C * R, 1, ...); with the pointwise factor first (K * R, C, 1, ...), and the layer's output k is
            the sum of the depthwise outputs k * R to k * R + R - 1.
        shift: (K,): the mean of what the output lacks, which a bias can put back; zero without moments.
        weight_error: Frobenius norm of the weight's error, relative to the weight's.
        output_error: root mean square of the output's error after the shift, relative to the output's deviation;
            ``None`` without moments.
    """

    order: str
    rank: int
    depthwise: Tensor
    pointwise: Tensor
    shift: Tensor
    weight_error: float
    output_error: float | None


def largest_rank(weight: Tensor, order: str = "depthwise_first") -> int:
    """The rank at which nothing is lost: the number of taps, or of the other channels where these are fewer.

    Example:
        >>> largest_rank(torch.ones(64, 32, 3, 3)), largest_rank(torch.ones(4, 32, 3, 3))
        (9, 4)
    """
    _check(weight, order)
    return min(math.prod(weight.shape[2:]), weight.shape[0 if order == "depthwise_first" else 1])


def tails(weight: Tensor, order: str = "depthwise_first") -> Tensor:
    """The relative weight error of the best factors of every rank, from the singular values alone.

    Args:
        weight: (K, C, *taps), floating point.
        order: ``"depthwise_first"`` or ``"pointwise_first"``.

    Returns:
        (:func:`largest_rank` + 1,), float64: entry R is sqrt(sum of the squares of all singular values after the R-th,
        over all channels) / norm of the weight.

    Example:
        >>> tails(torch.eye(2).reshape(2, 1, 2))
        tensor([1.0000, 0.7071, 0.0000], dtype=torch.float64)
    """
    _check(weight, order)
    matrices = weight.detach().double().flatten(2)
    if order == "depthwise_first":
        matrices = matrices.transpose(0, 1)
    squares = torch.linalg.svdvals(matrices).square().sum(0)
    left = squares.flip(0).cumsum(0).flip(0)
    return (torch.cat([left, left.new_zeros(1)]) / squares.sum().clamp_min(1e-300)).sqrt()


def output_tails(weight: Tensor, moments: Moments, highest: int) -> Tensor:
    """The relative output error of ``fit(weight, R, moments=moments, sweeps=0)`` for every rank R at once.

    The depthwise factors of the ranks are nested, and so are the systems of their pointwise ones: the triangle of the
    largest holds those of all.

    Args:
        weight: (K, C, *taps), floating point.
        moments: of the layer's input patches.
        highest: the largest rank of interest.

    Returns:
        (highest + 1,), float64, for rank 0 to ``highest``.

    Cost: that of one fit of rank ``highest``.
    """
    check_int("highest", highest, low=1, high=largest_rank(weight))
    problem = _Problem(weight, "depthwise_first", moments)
    depthwise, _ = problem.start(highest)
    system, right = problem.pointwise_system(depthwise)
    channels = problem.shape[1]
    order = torch.arange(channels * highest, device=right.device).view(channels, highest).T.flatten()  # ranks outside
    triangle = _triangle(system[order][:, order])
    explained = torch.linalg.solve_triangular(triangle, right[order], upper=False).square().sum(1)
    whole = (problem.whole * problem.target).sum().clamp_min(1e-300)
    gains = explained.view(highest, channels).sum(1).cumsum(0)
    return ((whole - torch.cat([gains.new_zeros(1), gains])) / whole).clamp_min(0).sqrt()


def fit(
    weight: Tensor, rank: int, *, order: str = "depthwise_first", moments: Moments | None = None, sweeps: int = 2
) -> Factors:
    """Separable factors of a dense weight.

    Without ``moments`` they are those of the truncated singular value decomposition, the closest to the weight. With
    them the expected error of the output is made small: the pointwise factor solves its least squares problem given the
    depthwise one, then the depthwise one given the pointwise one, and so on; no half step makes the error larger.

    Args:
        weight: (K, C, *taps), floating point, of one group.
        rank: R, 1 to :func:`largest_rank`.
        order: which factor comes first.
        moments: of the layer's input patches, mean taken out where :attr:`Factors.shift` will be added to a bias.
        sweeps: how often both factors are solved for after the first pointwise one; 0 gives that alone.

    Returns:
        Factors in the dtype and on the device of ``weight``.

    Raises:
        ArgumentError: a rank or a size out of range, an unknown order.

    Cost: without moments C eigenproblems of T x T; with them a system of C * R unknowns for K outputs, and 5 products
    of K x CT x CT per half step of a sweep.

    Source: Guo et al., "Network decoupling", arXiv:1808.05517, for the decomposition; Zhang et al., "Accelerating very
    deep convolutional networks", arXiv:1505.06798, for fitting outputs.

    Example:
        >>> weight = torch.randn(8, 4, 3, 3)
        >>> exact = fit(weight, 8)
        >>> torch.allclose(dense(exact), weight, atol=1e-5)
        True
        >>> fit(weight, 2).weight_error > fit(weight, 4).weight_error
        True
    """
    best = largest_rank(weight, order)
    check_int("rank", rank, low=1, high=best)
    problem = _Problem(weight, order, moments)
    depthwise, pointwise = problem.start(rank)
    if moments is not None and rank < best:
        pointwise = problem.solve_pointwise(depthwise, pointwise)
        for _ in range(sweeps):
            depthwise = problem.improve("depthwise", depthwise, pointwise)
            pointwise = problem.solve_pointwise(depthwise, pointwise)
    return problem.factors(*_balanced(order, depthwise, pointwise))


def dense(factors: Factors) -> Tensor:
    """The dense weight (K, C, *taps) that does what the factors do; exact but for one rounding.

    Example:
        >>> weight = torch.randn(8, 4, 5)
        >>> torch.allclose(dense(fit(weight, 5)), weight, atol=1e-5)
        True
    """
    pointwise, depthwise = unpacked(factors.order, factors.rank, factors.pointwise, factors.depthwise)
    whole = torch.einsum(_FORMS[factors.order]["whole"], pointwise.double(), depthwise.double())
    taps = factors.depthwise.shape[2:]
    return whole.reshape(*whole.shape[:2], *taps).to(factors.depthwise.dtype)


def unpacked(order: str, rank: int, pointwise: Tensor, depthwise: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's pointwise and depthwise weight with an axis for the rank, as the bilinear form takes them."""
    depthwise = depthwise.reshape(-1, rank, math.prod(depthwise.shape[2:]))
    pointwise = pointwise.flatten(1)
    if order == "depthwise_first":
        return pointwise.reshape(len(pointwise), -1, rank), depthwise
    return pointwise.reshape(-1, rank, pointwise.shape[1]), depthwise


def _check(weight: Tensor, order: str) -> None:
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor, got {weight!r}")
    if weight.dim() < 3 or 0 in weight.shape:
        raise ArgumentError(f"weight must have shape (K, C, *taps) with sizes of at least 1, got {tuple(weight.shape)}")


class _Problem:
    """One weight, and the metric in which its error is measured."""

    def __init__(self, weight: Tensor, order: str, moments: Moments | None) -> None:
        self.weight, self.order, self.moments = weight, order, moments
        self.forms = _FORMS[order]
        self.whole = weight.detach().double().flatten(2)
        self.shape = self.whole.shape  # K, C, T
        _, channels, taps = self.shape
        self.gram: Tensor | None = None
        if moments is not None:
            size = channels * taps
            if moments.gram.shape != (size, size) or moments.mean.shape != (size,):
                raise ArgumentError(
                    f"moments must be of {size} elements for a weight of shape {tuple(weight.shape)}, got "
                    f"{tuple(moments.gram.shape)} and {tuple(moments.mean.shape)}"
                )
            self.gram = moments.gram.to(self.whole)
            self.target = self.times_gram(self.whole)
            blocks = self.gram.view(channels, taps, channels, taps)
            self.own = blocks.diagonal(0, 0, 2).permute(2, 0, 1)  # (C, T, T): each channel's taps among themselves
            # Kronecker stand-ins for the whole, which start and precondition what has no small system of its own.
            self.taps = self.own.mean(0)
            self.channels = blocks.diagonal(0, 1, 3).mean(-1)

    def times_gram(self, whole: Tensor) -> Tensor:
        assert self.gram is not None
        return (whole.flatten(1) @ self.gram).view(self.shape)

    def start(self, rank: int) -> tuple[Tensor, Tensor]:
        """The truncated decomposition, weighted by the moments as far as it has a closed form."""
        first = self.order == "depthwise_first"
        matrices = self.whole.transpose(0, 1) if first else self.whole  # (channels, other channels, T)
        if self.gram is None:
            root = inverse = torch.eye(self.shape[2], dtype=torch.float64, device=self.whole.device)
            left = matrices
        else:
            root, inverse = _roots(self.own if first else self.taps)
            left = matrices @ root if first else _roots(self.channels)[0] @ (matrices @ root)
        _, vectors = torch.linalg.eigh(left.mT @ left)
        vectors = vectors[..., -rank:].flip(-1)
        depthwise = vectors.mT @ inverse
        pointwise = matrices @ root @ vectors  # (channels, other channels, R)
        return depthwise, pointwise.transpose(0, 1) if first else pointwise.mT

    def solve_pointwise(self, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        """The best pointwise factor given the depthwise one: a system that all outputs share, or steps."""
        if self.order != "depthwise_first":
            return self.improve("pointwise", depthwise, pointwise)
        system, right = self.pointwise_system(depthwise)
        solution = torch.cholesky_solve(right, _triangle(system)).mT
        return solution.reshape(self.shape[0], self.shape[1], -1)

    def pointwise_system(self, depthwise: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations of the pointwise factor, depthwise first: (C * R, C * R) and (C * R, K)."""
        assert self.gram is not None
        _, channels, taps = self.shape
        rank = depthwise.shape[1]
        half = torch.einsum("crt,ctv->crv", depthwise, self.gram.view(channels, taps, -1))
        system = torch.einsum("mdu,dsu->mds", half.view(channels * rank, channels, taps), depthwise).flatten(1)
        return system, torch.einsum(self.forms["pointwise"], self.target, depthwise).flatten(1).mT

    def improve(self, factor: str, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        """A better factor, the other given, by steps of conjugate gradients."""
        both = {"depthwise": depthwise, "pointwise": pointwise}
        other = both["pointwise" if factor == "depthwise" else "depthwise"]

        def whole(value: Tensor) -> Tensor:
            pair = (other, value) if factor == "depthwise" else (value, other)
            return torch.einsum(self.forms["whole"], *pair)

        def derivative(error: Tensor) -> Tensor:
            pair = (other, error) if factor == "depthwise" else (error, other)
            return torch.einsum(self.forms[factor], *pair)

        residual = derivative(self.target - self.times_gram(whole(both[factor])))
        # The outputs of the pointwise-first form are independent of each other, and so are their steps.
        dims = (0, 1, 2) if self.order == "depthwise_first" else (1, 2)
        step = _conjugate_gradients(
            lambda value: derivative(self.times_gram(whole(value))), self._precondition(factor, other), residual, dims
        )
        return both[factor] + step

    def _precondition(self, factor: str, other: Tensor) -> Callable[[Tensor], Tensor]:
        if self.order == "depthwise_first":
            ranks, sides = _inverse(torch.einsum("kcr,kcs->crs", other, other)), _inverse(self.own)
        elif factor == "depthwise":
            ranks, sides = _inverse(other @ self.channels @ other.mT), _inverse(self.taps)
        else:
            ranks, sides = _inverse(other @ self.taps @ other.mT), _inverse(self.channels)
        return lambda value: ranks @ value @ sides

    def factors(self, depthwise: Tensor, pointwise: Tensor) -> Factors:
        outputs, channels, _ = self.shape
        rank, spatial = depthwise.shape[1], self.weight.shape[2:]
        ones = (1,) * len(spatial)
        depthwise = depthwise.reshape(-1, 1, *spatial).to(self.weight.dtype)
        mixed = (
            pointwise.reshape(outputs, channels * rank) if self.order == "depthwise_first" else pointwise.flatten(0, 1)
        )
        mixed = mixed.reshape(*mixed.shape, *ones).to(self.weight.dtype)
        # Measured on the weights as they are kept, rounding included.
        pair = unpacked(self.order, rank, mixed, depthwise)
        error = self.whole - torch.einsum(self.forms["whole"], *(factor.double() for factor in pair))
        weight_error = float(error.norm() / self.whole.norm().clamp_min(1e-300))
        shift, output_error = self.whole.new_zeros(outputs), None
        if self.moments is not None:
            shift = error.flatten(1) @ self.moments.mean.to(error)
            lost = (error * self.times_gram(error)).sum().clamp_min(0)
            output_error = float((lost / (self.whole * self.target).sum().clamp_min(1e-300)).sqrt())
        return Factors(self.order, rank, depthwise, mixed, shift.to(self.weight.dtype), weight_error, output_error)


def _balanced(order: str, depthwise: Tensor, pointwise: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with both factors of a rank equally long: better to train on, and to round."""
    long = depthwise.norm(dim=-1)
    other = pointwise.norm(dim=0 if order == "depthwise_first" else -1)
    scale = torch.where((long > 0) & (other > 0), (other / long.clamp_min(1e-300)).sqrt(), torch.ones_like(long))
    depthwise = depthwise * scale.unsqueeze(-1)
    return depthwise, pointwise / (scale if order == "depthwise_first" else scale.unsqueeze(-1))


def _roots(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of positive semi-definite matrices, and their inverses."""
    values, vectors = torch.linalg.eigh(matrices)
    values = values.clamp_min(1e-10 * values.amax(-1, keepdim=True).clamp_min(1e-300))
    return (vectors * values.sqrt().unsqueeze(-2)) @ vectors.mT, (vectors / values.sqrt().unsqueeze(-2)) @ vectors.mT


def _inverse(matrices: Tensor) -> Tensor:
    return torch.linalg.inv(_lifted(matrices))


def _lifted(matrices: Tensor, share: float = 1e-8) -> Tensor:
    """A little added to the diagonal, so that dead channels do not make a matrix singular."""
    size = matrices.shape[-1]
    trace = matrices.diagonal(0, -2, -1).sum(-1)[..., None, None]
    return matrices + (share * trace / size).clamp_min(1e-30) * torch.eye(size).to(matrices)


def _triangle(system: Tensor) -> Tensor:
    for share in (1e-10, 1e-8, 1e-6, 1e-4):
        triangle, info = torch.linalg.cholesky_ex(_lifted(system, share))
        if not info.item():
            return triangle
    raise ArgumentError("moments must be positive semi-definite and finite")


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], residual: Tensor, dims: Any
) -> Tensor:
    """Some steps towards the x with apply(x) = residual, from x = 0; apply is positive semi-definite."""
    x = torch.zeros_like(residual)
    direction = conditioned = precondition(residual)
    product = (residual * conditioned).sum(dims, keepdim=True)
    for _ in range(_STEPS):
        image = apply(direction)
        curvature = (direction * image).sum(dims, keepdim=True)
        length = torch.where(curvature > 0, product / curvature.clamp_min(1e-300), 0.0)
        x, residual = x + length * direction, residual - length * image
        conditioned = precondition(residual)
        following = (residual * conditioned).sum(dims, keepdim=True)
        direction = conditioned + torch.where(product > 0, following / product.clamp_min(1e-300), 0.0) * direction
        product = following
    return x
