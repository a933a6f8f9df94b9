"""The loss of a run: cross-entropy with weights of classes, and a teacher's share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.training.config import Settings
from dwsep.training.data import Examples
from dwsep.training.distillation import distillation_loss


class Loss:
    """What a run minimises.

    Args:
        config: The settings.
        data: The training data, for its classes and how often they occur.
        device: Where the logits are.
        teacher: The network to learn from, or None.

    Raises:
        ValueError: If there is not one class weight per class.
    """

    def __init__(self, config: Settings, data: Examples, device: torch.device, teacher: nn.Module | None) -> None:
        self.config = config
        self.ignore_index = data.ignore_index
        self.weights = class_weights(config, data)
        self.weights = None if self.weights is None else self.weights.to(device)
        self.teacher = teacher

    def __call__(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """The mean over all targets that count, each by its class's weight, a scalar.

        Args:
            logits: Shape (N, K) or (N, K, H, W).
            targets: Shape (N,) or (N, H, W), int64.
            inputs: What the logits come from, for the teacher.
        """
        logits = logits.float()
        keep = targets != self.ignore_index
        if not bool(keep.any()):
            return logits.sum() * 0  # a mean over nothing would be NaN
        loss = F.cross_entropy(
            logits,
            targets,
            self.weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.config.label_smoothing,
        )
        if self.teacher is None:
            return loss
        with torch.no_grad():
            theirs = self.teacher(inputs)
        share, temperature = self.config.distill_weight, self.config.distill_temperature
        return (1 - share) * loss + share * distillation_loss(logits, theirs, temperature, keep)


def class_weights(config: Settings, data: Examples) -> Tensor | None:
    """The weight of every class, (K,), float32; None for all alike.

    Raises:
        ValueError: If the settings have another number of weights than the data has classes.
    """
    if config.class_weights is None:
        return None
    if config.class_weights == "balanced":
        counts = torch.tensor(data.class_counts(), dtype=torch.float64)
        # A class that does not occur takes part in no loss, whatever its weight.
        return (counts.sum() / (len(counts) * counts.clamp(min=1))).float()
    if len(config.class_weights) != data.num_classes:
        raise ValueError(
            f"class_weights must have one weight per class, got {len(config.class_weights)} for {data.num_classes}"
        )
    return torch.tensor(config.class_weights)
