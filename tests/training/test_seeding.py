"""The three global generators are seeded, captured and put back together."""

from __future__ import annotations

import random

import numpy as np
import torch

from dwsep.training.seeding import capture_rng, restore_rng, seed_everything


def draw():
    # gauss and standard_normal keep half of a pair for the next call: state beyond the words.
    numbers = [random.random(), random.gauss(0, 1), np.random.standard_normal(), np.random.rand()]
    return [*numbers, torch.rand(1).item(), torch.randn(3).tolist()]


def test_seed_everything_repeats_all_three():
    seed_everything(7)
    first = draw()
    seed_everything(8)
    other = draw()
    seed_everything(7)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_restore_rng_goes_on_from_the_middle():
    seed_everything(3)
    draw()
    random.gauss(0, 1)
    np.random.standard_normal()
    tensors, rest = capture_rng()
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    restore_rng(tensors, rest)
    assert [draw() for _ in range(3)] == expected
