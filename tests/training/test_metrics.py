"""Accuracy, loss and the scores of each class against the definitions."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from dwsep.training.metrics import Evaluator, class_scores


def test_evaluator_agrees_with_the_definitions_over_uneven_batches():
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    evaluator = Evaluator(4)
    for start, stop in ((0, 7), (7, 40), (40, 50)):
        evaluator.update(logits[start:stop], labels[start:stop])
    result = evaluator.compute()
    predicted = logits.argmax(1)
    assert result.accuracy == (predicted == labels).double().mean().item()
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for truth, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        expected[truth, guess] += 1
    assert torch.equal(result.confusion, expected)


def test_evaluator_counts_a_single_class():
    evaluator = Evaluator(1)
    evaluator.update(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    result = evaluator.compute()
    assert result.accuracy == 1.0
    assert result.confusion.tolist() == [[3]]


def test_evaluator_takes_bfloat16_logits_that_track_gradients():
    evaluator = Evaluator(2)
    evaluator.update(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True), torch.tensor([1]))
    assert evaluator.compute().accuracy == 1.0


def test_class_scores_by_hand():
    first, second, third = class_scores(torch.tensor([[6, 1, 3], [2, 4, 0], [0, 0, 0]]))
    assert (first.images, first.recall, first.precision, first.mistaken_for) == (10, 0.6, 0.75, 2)
    assert first.f1 == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert (second.images, second.mistaken_for) == (6, 0)
    assert third.images == 0
    assert math.isnan(third.recall)
    assert third.precision == 0.0
    assert third.mistaken_for is None


def test_evaluator_names_the_extra_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r'pip install "dwsep\[train\]"'):
        Evaluator(2)


def test_scores_of_masks_leave_out_what_does_not_count():
    labels = torch.tensor([[[0, 0, 1], [1, 255, 255]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 0, 2]]])
    logits = torch.nn.functional.one_hot(predicted, 3).permute(0, 3, 1, 2).float() * 10
    evaluator = Evaluator(3, ignore_index=255)
    evaluator.update(logits, labels)
    result = evaluator.compute()
    assert result.accuracy == 0.75
    assert result.class_iou[:2] == [1 / 2, 2 / 3]
    assert result.class_iou[2] != result.class_iou[2]  # neither there nor predicted where it counts
    assert result.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    kept = labels != 255
    expected = torch.nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[kept], labels[kept])
    assert result.loss == pytest.approx(expected.item())


def test_sums_of_several_processes_are_those_of_one():
    logits, labels = torch.randn(10, 3), torch.randint(0, 3, (10,))
    whole, *parts = (Evaluator(3) for _ in range(3))
    parts[0].update(logits[:4], labels[:4])
    parts[1].update(logits[4:], labels[4:])
    whole.update(logits[:4], labels[:4])
    whole.update(logits[4:], labels[4:])
    parts[0].add(lambda tensor: tensor + parts[1]._confusion.confmat, lambda losses: parts[1]._losses + losses)
    one, both = whole.compute(), parts[0].compute()
    assert torch.equal(one.confusion, both.confusion)
    assert both.loss == one.loss  # to the last bit, whoever's comes first
