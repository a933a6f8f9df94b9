"""Evaluating a network, and what training and evaluation share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dwsep.training.config import MemoryFormat, Precision
from dwsep.training.data import Examples, Normalisation, sequential_batches
from dwsep.training.distributed import Processes
from dwsep.training.metrics import EvaluationResult, Evaluator
from dwsep.training.progress import EvaluationProgress

_EVALUATION_BATCH = 250
_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def evaluate(
    model: nn.Module,
    data: Examples,
    *,
    normalisation: Normalisation,
    batch_size: int = _EVALUATION_BATCH,
    precision: Precision = "float32",
    memory_format: MemoryFormat = "channels_last",
    show_progress: bool = False,
    between_batches: Callable[[], None] | None = None,
    processes: Processes | None = None,
) -> EvaluationResult:
    """Evaluate a network; it is in evaluation mode meanwhile, and afterwards in the mode it was in.

    Args:
        model: Takes what ``data`` gives and returns logits of shape (N, classes), or (N, classes, H, W) for masks.
        data: Examples to evaluate on.
        normalisation: Mean and standard deviation of the data it was trained on.
        batch_size: Examples per batch.
        precision: "float32", or "bfloat16" for autocast.
        memory_format: Memory format of the batches, "channels_last" or "contiguous".
        show_progress: Whether to show progress on standard error.
        between_batches: Called after every batch.
        processes: Processes that share the data; each gets the result of all.

    Returns:
        Accuracy, loss and confusion matrix.

    Raises:
        ValueError: If batch_size is not positive, or the network has another number of classes than the data.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    device = device_of(model)
    processes = processes or Processes()
    evaluator = Evaluator(data.num_classes, data.ignore_index)
    progress = EvaluationProgress(show_progress, len(data), data.unit)
    memory = _MEMORY_FORMATS[memory_format]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batches = sequential_batches(data, batch_size, normalisation, memory, processes.rank, processes.size)
            for images, labels in batches:
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
    if processes.size > 1:
        evaluator.add(processes.sum, processes.gather)
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


def check_logits(logits: Tensor, data: Examples) -> None:
    """Raise a ValueError unless logits have a value per class, and per pixel where the data's targets are masks."""
    expected = (data.num_classes, *data.targets.shape[1:])
    # Augmentation and prediction may bring other sizes: only the number of axes is certain.
    if logits.dim() != 1 + len(expected) or logits.shape[1] != data.num_classes:
        shape = ", ".join(("N", str(data.num_classes), *("H", "W")[: len(expected) - 1]))
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, so the network must return ({shape}) logits, "
            f"got {tuple(logits.shape)}"
        )
