"""Optimiser and learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from dwsep.training.config import Settings

_MOMENTUM = 0.9


def make_optimizer(model: nn.Module, config: Settings) -> torch.optim.Optimizer:
    """Make the optimiser.

    Norms and biases are not decayed, nor are depthwise kernels, which have few weights to begin with (Howard et al.
    2017, section 3.2, advises little or no decay for them).

    Args:
        model: The network.
        config: Names the optimiser, learning rate and weight decay.

    Returns:
        An optimiser with two parameter groups, decayed and not.
    """
    kernels = _depthwise_kernels(model)
    decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in kernels]
    others = [p for p in model.parameters() if p.dim() <= 1 or id(p) in kernels]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Compute the learning rate of a step: linear warm-up, then half a cosine towards zero.

    Args:
        step: Number of the step, from 0.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        peak: Highest learning rate.

    Returns:
        The learning rate, positive for every step of the run.

    Example:
        >>> [round(learning_rate_at(step, 6, 2, 1.0), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def _depthwise_kernels(model: nn.Module) -> set[int]:
    found = set()
    for module in model.modules():
        groups = getattr(module, "groups", 1)
        weight = getattr(module, "weight", None)
        if isinstance(groups, int) and groups > 1 and isinstance(weight, nn.Parameter) and weight.shape[1] == 1:
            found.add(id(weight))
    return found
