"""Batch norms' running statistics, corrected for what a conversion changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.convert._runs import Batch, batch_norms, evaluating, hooked

Statistics = dict[Any, tuple[Tensor, Tensor]]  # mean and variance by norm


class NormCorrection:
    """What the data give the norms of a network as it is now; :meth:`apply` moves them by what has changed since.

    The running statistics come from the whole training data, the calibration data are a sample of it: taking over the
    difference rather than the sample's own values leaves norms alone that nothing happened to.
    """

    def __init__(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.model, self.data = model, data
        self.kept: Statistics = {n: (n.running_mean.clone(), n.running_var.clone()) for n in batch_norms(model)}
        self.own = _by_batch(model, data) if self.kept else {}
        self.running = _as_they_run(model, data) if self.kept else {}

    @torch.no_grad()
    def apply(self) -> None:
        """Correct the statistics.

        First each norm normalises by its own batches, so that all are nearly right after one pass however deep the
        network is. Then what is left, such as a norm in two places, is corrected as the network runs.
        """
        if self.kept:
            self._move(self.own, _by_batch(self.model, self.data))
            for _ in range(2):
                self._move(self.running, _as_they_run(self.model, self.data))

    def _move(self, before: Statistics, after: Statistics) -> None:
        for norm, (mean, variance) in self.kept.items():
            (old_mean, old_variance), (new_mean, new_variance) = before[norm], after[norm]
            norm.running_mean.copy_(mean + (new_mean - old_mean))
            ratio = torch.where(old_variance > 0, new_variance / old_variance.clamp_min(1e-30), 1.0)
            norm.running_var.copy_(variance * ratio)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Statistics as they were when this was made, on leaving."""
        try:
            yield
        finally:
            with torch.no_grad():
                for norm, (mean, variance) in self.kept.items():
                    norm.running_mean.copy_(mean)
                    norm.running_var.copy_(variance)


def _by_batch(model: nn.Module, data: Iterable[Batch]) -> Statistics:
    """Averages over the batches of what each norm is given, all norms normalising by their own batch."""
    norms = batch_norms(model)
    kept = [
        (n, n.running_mean.clone(), n.running_var.clone(), n.num_batches_tracked.clone(), n.momentum) for n in norms
    ]
    with evaluating(model):
        try:
            for norm in norms:
                norm.training, norm.momentum = True, None
                norm.reset_running_stats()
            for batch in data:
                model(*batch)
            return {norm: (norm.running_mean.clone(), norm.running_var.clone()) for norm in norms}
        finally:
            for norm, mean, variance, tracked, momentum in kept:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.num_batches_tracked.copy_(tracked)
                norm.momentum = momentum


def _as_they_run(model: nn.Module, data: Iterable[Batch]) -> Statistics:
    """Mean and variance of what each norm is given in evaluation."""
    sums: dict[Any, list[Tensor]] = {}

    def before(norm: Any, args: Batch) -> None:
        x = args[0].detach()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x if x.dtype == torch.float64 else x.float()
        count = torch.tensor(float(x.numel() // x.shape[1]))
        entry = [count, wide.sum(axes), wide.square().sum(axes)]
        sums[norm] = [a + b for a, b in zip(sums[norm], entry)] if norm in sums else entry

    with hooked(norm.register_forward_pre_hook(before) for norm in batch_norms(model)), evaluating(model):
        for batch in data:
            model(*batch)
    statistics: Statistics = {}
    for norm in batch_norms(model):
        if norm in sums:
            count, total, squares = sums[norm]
            mean = total / count
            variance = (squares / count - mean.square()).clamp_min(0)
        else:  # was not called
            mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        statistics[norm] = (mean.to(norm.running_mean), variance.to(norm.running_var))
    return statistics
