"""Learning from another network's predictions beside the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.networks._weights import ModelInfo, read_model


def load_teacher(path: Path, info: ModelInfo) -> nn.Module:
    """Load the network to learn from.

    Args:
        path: Its model file.
        info: What the model file of the network that learns will say.

    Returns:
        The network, in evaluation mode, accelerated, its weights wanting no gradient.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of other classes or other input.
    """
    _, theirs = read_model(path)
    names: tuple[tuple[str, Any, Any], ...] = (
        ("task", theirs.task, info.task),
        ("classes", theirs.class_names, info.class_names),
        ("channels", theirs.in_channels, info.in_channels),
        ("mean", theirs.mean, info.mean),
        ("standard deviation", theirs.std, info.std),
        ("vocabulary", theirs.extra.get("vocabulary"), info.extra.get("vocabulary")),
    )
    for what, their, own in names:
        if their != own:
            shown = "" if what == "vocabulary" else f": {their}, not {own}"
            raise ValueError(f"teacher {path} was trained with other {what}{shown}")
    teacher = networks.load_model(path).requires_grad_(False).eval()
    accelerate_(teacher)
    return teacher


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, keep: Tensor | None = None) -> Tensor:
    """The divergence of softened predictions, times temperature squared.

    Args:
        student: Logits of shape (N, K) or (N, K, H, W).
        teacher: Logits of that shape.
        temperature: Divides both.
        keep: Which examples or pixels count, (N,) or (N, H, W), bool; None for all.

    Returns:
        The mean over what counts, a scalar.

    Source: Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """
    ours, theirs = (F.log_softmax(logits.float() / temperature, 1) for logits in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    if keep is not None:
        divergence = torch.where(keep, divergence, 0.0).sum() / keep.sum().clamp(min=1)
        return divergence * temperature**2
    return divergence.mean() * temperature**2
