"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * weights`` of every floating point tensor of a network.

    In the first steps the decay is less, (1 + step) / (10 + step), so that the initial weights are soon forgotten.
    Integer buffers follow as they are.

    Args:
        model: The network.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights in after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.model.state_dict()
        for name, value in state.items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, 1 - decay)
            else:
                self.tensors[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average for its weights inside."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        _copy(self.model, self.tensors)
        try:
            yield
        finally:
            _copy(self.model, own)


@torch.no_grad()
def _copy(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        value.copy_(tensors[name])
