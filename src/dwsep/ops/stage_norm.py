"""``dwsep::stage_statistics`` and ``dwsep::stage_correction``: a batch norm between stages, on its channels alone."""

from __future__ import annotations

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY

LIBRARY.define(
    "stage_statistics(Tensor sums, int count, Tensor? weight, Tensor? bias, float eps, float momentum, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var) -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "stage_correction(Tensor grad_affine, Tensor mean, Tensor invstd, Tensor? weight, int count) "
    "-> (Tensor, Tensor, Tensor)"
)
LIBRARY.impl("stage_statistics", stage_reference.statistics, "CompositeExplicitAutograd")
LIBRARY.impl("stage_correction", stage_reference.correction_of, "CompositeExplicitAutograd")


def _vector(like: Tensor, channels: int) -> Tensor:
    return like.new_empty(channels, dtype=torch.float32)


@torch.library.register_fake("dwsep::stage_statistics", lib=LIBRARY)
def _(sums, count, weight, bias, eps, momentum, running_mean, running_var):
    return tuple(_vector(sums, sums.shape[1]) for _ in range(4))


@torch.library.register_fake("dwsep::stage_correction", lib=LIBRARY)
def _(grad_affine, mean, invstd, weight, count):
    channels = mean.shape[0]
    return mean.new_empty((2, channels)), _vector(mean, channels), _vector(mean, channels)
