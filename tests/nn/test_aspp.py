"""Separable pyramid pooling written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dwsep
from tests.nn.written_out import conv


@pytest.mark.parametrize("pooling", [True, False])
def test_separable_aspp_written_out(pooling):
    block = dwsep.nn.SeparableASPP(6, 4, (2, 5), image_pooling=pooling, dropout=0.0)
    x = torch.randn(2, 6, 11, 9)
    parts = [block.pointwise.norm(conv(block.pointwise.conv, x)).relu()]
    for layer, dilation in zip(block.branches, (2, 5)):
        parts.append(layer.norm(conv(layer.pointwise, conv(layer.depthwise, x, 6, dilation))).relu())
    if pooling:
        mean = block.pool.norm(conv(block.pool.conv, x.mean((2, 3), keepdim=True))).relu()
        parts.append(F.interpolate(mean, size=(11, 9), mode="bilinear"))
    expected = block.project.norm(conv(block.project.conv, torch.cat(parts, 1))).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make, message", [
    (lambda n: n.SeparableASPP(4, 4, dropout=1), "dropout must be at least 0 and below 1, got 1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
