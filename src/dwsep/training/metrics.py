"""What an evaluation finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Args:
        accuracy: Share of images, texts, series or pixels classified rightly, 0 to 1.
        loss: Mean cross-entropy in nats.
        confusion: Counts of shape (K, K), int64; rows are true classes, columns are predictions.
    """

    accuracy: float
    loss: float
    confusion: Tensor

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 of the classes that occur among labels or predictions."""
        return _mean(score.f1 for score in class_scores(self.confusion))

    @property
    def class_iou(self) -> list[float]:
        """Intersection over union of every class; NaN for one that neither occurs nor was predicted."""
        confusion = self.confusion
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        return [_ratio(part, whole) for part, whole in zip(confusion.diagonal().tolist(), union.tolist())]

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes that occur among labels or predictions."""
        return _mean(self.class_iou)


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Args:
        images: Images of the class.
        recall: Share of them that were found, 0 to 1; NaN if there is none.
        precision: Share of the images given this class that have it, 0 to 1; NaN if there is none.
        f1: Harmonic mean of the two; NaN if undefined.
        mistaken_for: The wrong class most often given to its images, or None if it was never mistaken.
    """

    images: int
    recall: float
    precision: float
    f1: float
    mistaken_for: int | None


def class_scores(confusion: Tensor) -> list[ClassScore]:
    """Break a confusion matrix down by class.

    Args:
        confusion: Counts of shape (K, K); rows are true classes, columns are predictions.

    Returns:
        One score per class.

    Example:
        >>> class_scores(torch.tensor([[3, 1], [0, 4]]))[0]
        ClassScore(images=4, recall=0.75, precision=1.0, f1=0.8571428571428571, mistaken_for=1)
    """
    scores = []
    for index, row in enumerate(confusion.tolist()):
        right, images = row[index], sum(row)
        predicted = int(confusion[:, index].sum())
        wrong = [count if other != index else 0 for other, count in enumerate(row)]
        scores.append(
            ClassScore(
                images=images,
                recall=_ratio(right, images),
                precision=_ratio(right, predicted),
                f1=_ratio(2 * right, images + predicted),
                mistaken_for=wrong.index(max(wrong)) if max(wrong) > 0 else None,
            )
        )
    return scores


class Evaluator:
    """Accumulates loss, accuracy and confusion over batches.

    Args:
        num_classes: Number of classes.
        ignore_index: Labels of this value do not count.

    Raises:
        ImportError: If torchmetrics is not installed.
    """

    def __init__(self, num_classes: int, ignore_index: int = -100) -> None:
        metrics = _import()
        # torchmetrics refuses to count the confusion of a single class.
        self._confusion = metrics.classification.MulticlassConfusionMatrix(
            max(2, num_classes), ignore_index=ignore_index, validate_args=False
        )
        self._losses: list[float] = []
        self._num_classes = num_classes
        self._ignore_index = ignore_index

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            logits: Shape (N, K) or (N, K, H, W), floating point.
            labels: Shape (N,) or (N, H, W), int64.
        """
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        self._confusion.update(logits.argmax(1), labels)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=self._ignore_index, reduction="none")
        self._losses.append(float(loss.double().sum()))

    def add(self, total: Callable[[Tensor], Tensor], gather: Callable[[list[float]], list[float]]) -> None:
        """Put together what several processes counted.

        Args:
            total: Returns the sum of a tensor over all of them.
            gather: Returns the values of all of them.
        """
        self._confusion.confmat = total(self._confusion.confmat)
        self._losses = gather(self._losses)

    def compute(self) -> EvaluationResult:
        """Summarise the batches so far."""
        # The metric's counts, not its result: that is summed over processes once more, and a process without batches
        # would be warned of it.
        confusion = self._confusion.confmat[: self._num_classes, : self._num_classes].to(torch.int64)
        right, total = int(confusion.diagonal().sum()), int(confusion.sum())
        # A sum rounded once is the same in any order, so that it does not matter which process had which batch.
        loss = math.fsum(self._losses) / total if total else float("nan")
        return EvaluationResult(_ratio(right, total), loss, confusion)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _import() -> Any:
    try:
        import torchmetrics
        import torchmetrics.classification
    except ImportError as error:
        raise ImportError('training needs torchmetrics; install it with: pip install "dwsep[train]"') from error
    return torchmetrics
