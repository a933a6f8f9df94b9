"""Xception against its published figures."""

from __future__ import annotations

import pytest
import torch

from dwsep.analysis import count
from dwsep.networks.xception import Features, Xception


def test_xception_costs_what_the_paper_says():
    with torch.device("meta"):
        model = Xception(1000)
    cost = count(model, torch.empty(1, 3, 299, 299, device="meta"))
    assert cost.parameters == 22_855_952  # Chollet 2017, Table 3
    assert cost.macs / 1e9 == pytest.approx(8.4, abs=0.1)


@pytest.mark.parametrize("variant", ["original", "aligned"])
def test_xception_small_stem_ends_at_an_eighth(variant):
    with torch.device("meta"):
        features = Features(3, 0.125, "small", variant, 1)
    assert features(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "new"}, "variant: unknown name 'new'; valid names are 'original', 'aligned'"),
        ({"middle_blocks": 0}, "middle_blocks must be a positive integer, got 0"),
        ({"width_multiplier": 0}, "width_multiplier must be a positive number, got 0"),
    ],
)
def test_xception_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Xception(10, **options)


def test_features_refuse_to_dilate_where_pooling_strides():
    with pytest.raises(ValueError, match="output_stride 16 needs variant='aligned', got 'original'"):
        Features(output_stride=16)
