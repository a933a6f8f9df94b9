"""A batch norm between stages: ``dwsep::stage_statistics`` and ``stage_correction`` on its channels alone, and
``stage_sums`` and ``stage_corrected`` on the output of a convolution that is no stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.triton import support
from dwsep.ops import _stage_cuda
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last

LIBRARY.define(
    "stage_statistics(Tensor sums, int count, Tensor? weight, Tensor? bias, float eps, float momentum, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var) -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "stage_correction(Tensor grad_affine, Tensor mean, Tensor invstd, Tensor? weight, int count) "
    "-> (Tensor, Tensor, Tensor)"
)
LIBRARY.define("stage_sums(Tensor x) -> Tensor")
LIBRARY.define("stage_corrected(Tensor grad, Tensor y, Tensor correction) -> Tensor")


def _corrected(grad: Tensor, y: Tensor, correction: Tensor) -> Tensor:
    return channels_last(stage_reference.corrected(grad, y, correction))


LIBRARY.impl("stage_sums", stage_reference.sums_of, "CompositeExplicitAutograd")
LIBRARY.impl("stage_corrected", _corrected, "CompositeExplicitAutograd")
LIBRARY.impl("stage_statistics", stage_reference.statistics, "CompositeExplicitAutograd")
LIBRARY.impl("stage_correction", stage_reference.correction_of, "CompositeExplicitAutograd")

_stage_cuda.implement("stage_sums", stage_reference.sums_of, "stage_norm", "sums")
_stage_cuda.implement("stage_corrected", _corrected, "stage_norm", "corrected", x=1)
_stage_cuda.implement("stage_statistics", stage_reference.statistics, "stage_norm", "statistics", runs=support.compiles)
_stage_cuda.implement(
    "stage_correction", stage_reference.correction_of, "stage_norm", "correction_of", runs=support.compiles
)


def _vector(like: Tensor, channels: int) -> Tensor:
    return like.new_empty(channels, dtype=torch.float32)


@torch.library.register_fake("dwsep::stage_statistics", lib=LIBRARY)
def _(sums, count, weight, bias, eps, momentum, running_mean, running_var):
    return tuple(_vector(sums, sums.shape[1]) for _ in range(4))


@torch.library.register_fake("dwsep::stage_correction", lib=LIBRARY)
def _(grad_affine, mean, invstd, weight, count):
    channels = mean.shape[0]
    return mean.new_empty((2, channels)), _vector(mean, channels), _vector(mean, channels)


@torch.library.register_fake("dwsep::stage_sums", lib=LIBRARY)
def _(x):
    return x.new_empty((2, x.shape[1]), dtype=torch.float64)


@torch.library.register_fake("dwsep::stage_corrected", lib=LIBRARY)
def _(grad, y, correction):
    return empty_channels_last(y, y.shape[1], y.shape[2:])
