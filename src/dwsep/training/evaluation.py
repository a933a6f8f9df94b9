"""Evaluating a network, and what training and evaluation share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dwsep.training.config import MemoryFormat, Precision
from dwsep.training.data import ImageDataset, Normalisation, sequential_batches
from dwsep.training.metrics import EvaluationResult, Evaluator
from dwsep.training.progress import EvaluationProgress

_EVALUATION_BATCH = 250
_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def evaluate(
    model: nn.Module,
    data: ImageDataset,
    *,
    normalisation: Normalisation,
    batch_size: int = _EVALUATION_BATCH,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "channels_last",
    show_progress: bool = False,
    between_batches: Callable[[], None] | None = None,
) -> EvaluationResult:
    """Evaluate a network; it is in evaluation mode meanwhile, and afterwards in the mode it was in.

    Args:
        model: Takes float images of shape (N, C, H, W) and returns logits of shape (N, classes).
        data: Images to evaluate on.
        normalisation: Mean and standard deviation of the images it was trained on.
        batch_size: Images per batch.
        precision: "float32", or "bfloat16" for autocast.
        memory_format: Memory format of the batches, "channels_last" or "contiguous".
        show_progress: Whether to show progress on standard error.
        between_batches: Called after every batch.

    Returns:
        Accuracy, loss and confusion matrix.

    Raises:
        ValueError: If batch_size is not positive, or the network has another number of classes than the data.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    device = device_of(model)
    evaluator = Evaluator(data.num_classes)
    progress = EvaluationProgress(show_progress, len(data))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for images, labels in sequential_batches(data, batch_size, normalisation, _MEMORY_FORMATS[memory_format]):
                with autocast(device, precision):
                    logits = model(images.to(device))
                check_logits(logits, data)
                evaluator.update(logits, labels)
                progress.advance(len(images))
                if between_batches is not None:
                    between_batches()
    finally:
        progress.close()
        model.train(was_training)
    return evaluator.compute()


def memory_format_of(name: MemoryFormat) -> torch.memory_format:
    """Look up a memory format by its name in the settings.

    Args:
        name: "channels_last" or "contiguous".

    Returns:
        The memory format.
    """
    return _MEMORY_FORMATS[name]


def device_of(model: nn.Module) -> torch.device:
    """Find the device of a network's first parameter; the CPU if it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """Run the forward pass in a precision; the weights stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def check_logits(logits: Tensor, data: ImageDataset) -> None:
    """Raise a ValueError unless logits have one column per class of the data."""
    if logits.dim() != 2 or logits.shape[1] != data.num_classes:
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, so the network must return (N, {data.num_classes}) logits, "
            f"got {tuple(logits.shape)}"
        )
