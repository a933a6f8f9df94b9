"""Shape arithmetic against torch's own convolutions and TensorFlow's published rule."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry

small = st.integers(1, 6)


@given(size=st.integers(1, 40), kernel=small, stride=small, dilation=small, padding=st.integers(0, 8))
def test_output_size_matches_torch(size, kernel, stride, dilation, padding):
    geometry = ConvGeometry.make(1, kernel, stride, padding, dilation)
    x, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
    try:
        expected = F.conv1d(x, weight, None, stride, padding, dilation).shape[2:]
    except RuntimeError:
        with pytest.raises(ArgumentError, match="output size"):
            geometry.output_size((size,))
    else:
        assert geometry.output_size((size,)) == tuple(expected)


@given(size=st.integers(1, 50), kernel=small, stride=small, dilation=small)
def test_same_rules_keep_the_rounded_up_share(size, kernel, stride, dilation):
    for rule in ("same", "same_tf"):
        geometry = ConvGeometry.make(1, kernel, stride, rule, dilation)
        assert geometry.output_size((size,)) == (math.ceil(size / stride),)
    causal = ConvGeometry.make(1, kernel, stride, "causal", dilation)
    assert causal.output_size((size,)) == (math.ceil(size / stride),)
    assert causal.pads((size,)) == ((dilation * (kernel - 1), 0),)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_is_symmetric_for_odd_kernels_and_torchs_for_even_ones():
    assert ConvGeometry.make(2, (3, 5), 2, "same", (1, 2)).pads((9, 9)) == ((1, 1), (4, 4))
    x, weight = torch.arange(7.0).view(1, 1, 7), torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]])
    low, high = ConvGeometry.make(1, 4, 1, "same").pads((7,))[0]
    assert torch.equal(F.conv1d(x, weight, padding="same"), F.conv1d(F.pad(x, (low, high)), weight))


@pytest.mark.parametrize(
    "size, kernel, stride, dilation, expected",
    # TensorFlow's rule for an input of 224 under a 3x3 stride-2 layer pads the high side only.
    [
        (224, 3, 2, 1, (0, 1)),
        (225, 3, 2, 1, (1, 1)),
        (224, 3, 1, 1, (1, 1)),
        (5, 2, 1, 1, (0, 1)),
        (10, 1, 4, 1, (0, 0)),
    ],
)
def test_same_tf_pads_as_tensorflow(size, kernel, stride, dilation, expected):
    assert ConvGeometry.make(1, kernel, stride, "same_tf", dilation).pads((size,)) == (expected,)


def test_padding_forms():
    make = lambda ndim, padding: ConvGeometry.make(ndim, 3, padding=padding).padding  # noqa: E731
    assert make(2, 1) == ((1, 1), (1, 1))
    assert make(2, (1, 2)) == ((1, 1), (2, 2))
    assert make(2, [(0, 1), 2]) == ((0, 1), (2, 2))
    assert make(2, [(-1, 3)]) == ((-1, 3), (-1, 3))
    assert make(1, (2, 5)) == ((2, 5),)
    assert make(3, "valid") == ((0, 0),) * 3


def test_geometry_is_hashable_and_compares_by_value():
    first, second = (ConvGeometry.make(2, 3, 1, "same") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != ConvGeometry.make(2, 3, 2, "same")


def test_receptive_field_of_a_dilated_stack():
    field = None
    for dilation in (1, 2, 4, 8):
        field = ConvGeometry.make(1, 3, 1, "causal", dilation).receptive_field(field)
    assert field == ((31, 1),)
