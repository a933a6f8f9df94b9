"""Evaluation counts every image once and leaves the network as it was."""

from __future__ import annotations

import pytest
import torch

from dwsep.training.data import Normalisation
from dwsep.training.evaluation import evaluate
from tests.training.toys import make_data, make_model

NORMALISATION = Normalisation((0.4,), (0.2,))
DATA = make_data(31)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(NORMALISATION(DATA.images))


@pytest.mark.parametrize("batch_size", [1, 7, 31, 100])
def test_evaluate_does_not_depend_on_the_batch_size(batch_size):
    model = make_model()
    result = evaluate(model, DATA, normalisation=NORMALISATION, batch_size=batch_size)
    logits = logits_of(model)
    assert result.accuracy == (logits.argmax(1) == DATA.labels).double().mean().item()
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, DATA.labels).item(), rel=1e-5)
    assert int(result.confusion.sum()) == 31


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_network_as_it_was(training):
    model = make_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, DATA, normalisation=NORMALISATION)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluate_puts_the_mode_back_after_an_error():
    model = make_model()
    with pytest.raises(ValueError, match="images have 1 channels, the mean has 3"):
        evaluate(model, DATA, normalisation=Normalisation((0.0,) * 3, (1.0,) * 3))
    assert model.training


def test_evaluate_in_bfloat16_is_close():
    model = make_model()
    exact = evaluate(model, DATA, normalisation=NORMALISATION)
    rounded = evaluate(model, DATA, normalisation=NORMALISATION, precision="bfloat16")
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_evaluate_refuses_an_empty_batch(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be positive, got {batch_size}"):
        evaluate(make_model(), DATA, normalisation=NORMALISATION, batch_size=batch_size)


def test_evaluate_refuses_a_network_of_other_classes():
    model = make_model()
    model[6] = torch.nn.Linear(384, 5)
    with pytest.raises(ValueError, match="toy has 3 classes"):
        evaluate(model, DATA, normalisation=NORMALISATION)


def test_evaluate_calls_between_batches():
    calls = []
    evaluate(make_model(), DATA, normalisation=NORMALISATION, batch_size=10, between_batches=lambda: calls.append(None))
    assert len(calls) == 4
