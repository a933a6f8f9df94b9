"""What is decayed, and how the learning rate moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dwsep.networks._plain import mobilenet_v1_plain
from dwsep.training.optimisation import learning_rate_at, make_optimizer
from tests.training.toys import make_config, make_separable


def plain():
    return mobilenet_v1_plain(3, in_channels=1, width_multiplier=0.125, stem="small")


@pytest.mark.parametrize("make", [make_separable, plain])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_make_optimizer_decays_dense_and_pointwise_weights_alone(make, optimizer):
    model = make()
    groups = make_optimizer(model, make_config(optimizer=optimizer, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(1 for _ in model.parameters())
    for name, parameter in model.named_parameters():
        decayed = name.endswith(("pointwise.weight", "conv.weight", "classifier.weight"))
        assert decay[id(parameter)] == (0.3 if decayed else 0.0), name


def test_make_optimizer_takes_a_model_of_one_kind_of_parameter():
    model = torch.nn.BatchNorm2d(3)
    assert [g["weight_decay"] for g in make_optimizer(model, make_config()).param_groups] == [0.0]


def test_learning_rate_at_warms_up_and_falls():
    rates = [learning_rate_at(step, 100, 10, 0.5) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(rates) == rates[10] == 0.5
    assert all(a > b > 0 for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.25)


def test_learning_rate_at_needs_no_warm_up():
    assert learning_rate_at(0, 10, 0, 1.0) == 1.0
