"""MixConv written out."""

from __future__ import annotations

import pytest
import torch

import dwsep
from tests.nn.written_out import conv


@pytest.mark.parametrize("sizes, splits", [((3,), (10,)), ((3, 5), (5, 5)), ((3, 5, 7, 9), (4, 2, 2, 2))])
def test_mixconv_written_out(sizes, splits):
    layer = dwsep.nn.MixConv2d(10, sizes, 2)
    assert layer.splits == splits
    x = torch.randn(2, 10, 12, 11)
    parts = [conv(branch, part, part.shape[1]) for branch, part in zip(layer.branches, x.split(splits, 1))]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make, message", [
    (lambda n: n.MixConv2d(2, (3, 5, 7)), "kernel_sizes must be between 1 and in_channels = 2 sizes, got 3"),
    (lambda n: n.MixConv2d(4, (3,), padding="valid"), "padding must be 'same' or 'same_tf'"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
