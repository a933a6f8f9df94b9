"""The choice of one option per layer."""

from __future__ import annotations

import itertools
import random

import pytest

from dwsep.convert._knapsack import choose


def brute_force(values, weights, limit):
    best = None
    for picks in itertools.product(*(range(len(row)) for row in values)):
        if sum(row[pick] for row, pick in zip(weights, picks)) <= limit:
            value = sum(row[pick] for row, pick in zip(values, picks))
            best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_equals_trying_everything(seed):
    draw = random.Random(seed)
    layers = draw.randint(1, 5)
    weights = [[draw.randint(0, 30) for _ in range(draw.randint(1, 5))] for _ in range(layers)]
    values = [[draw.random() for _ in row] for row in weights]
    limit = draw.randint(0, 60)
    wanted = brute_force(values, weights, limit)
    picks = choose(values, weights, limit)
    assert (picks is None) == (wanted is None)
    if picks is not None:
        assert sum(row[pick] for row, pick in zip(weights, picks)) <= limit
        # a weight is rounded up by a limit's 8192nd at most: integers up to 60 never lose one
        assert sum(row[pick] for row, pick in zip(values, picks)) == pytest.approx(wanted)


def test_limit_holds_where_weights_are_no_whole_steps():
    draw = random.Random(0)
    weights = [[draw.random() * 10 ** draw.randint(-3, 3) for _ in range(6)] for _ in range(30)]
    values = [[draw.random() for _ in row] for row in weights]
    limit = sum(map(min, weights)) * 1.5
    picks = choose(values, weights, limit)
    assert picks is not None
    assert sum(row[pick] for row, pick in zip(weights, picks)) <= limit * (1 + 1e-12)


def test_lightest_choice_is_found_at_its_very_weight():
    weights = [[0.1, 0.7], [0.2, 0.3], [0.7, 0.9]]
    assert choose([[1, 0]] * 3, weights, 0.1 + 0.2 + 0.7) == (0, 0, 0)
    assert choose([[1, 0]] * 3, weights, 0.999) is None
    assert choose([], [], 1.0) == ()
