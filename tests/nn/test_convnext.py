"""The ConvNeXt block written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dwsep
from tests.nn.written_out import conv


def test_convnext_block_written_out():
    block = dwsep.nn.ConvNeXtBlock(8, layer_scale=0.5)
    x = torch.randn(2, 8, 9, 9)
    out = F.layer_norm(conv(block.depthwise, x, 8).movedim(1, -1), (8,), block.norm.weight, block.norm.bias, 1e-6)
    out = block.project(F.gelu(block.expand(out))) * 0.5
    torch.testing.assert_close(block(x), x + out.movedim(-1, 1), rtol=1e-5, atol=1e-5)
    assert dwsep.nn.ConvNeXtBlock(8, layer_scale=None).layer_scale is None


@pytest.mark.parametrize("make, message", [
    (lambda n: n.ConvNeXtBlock(0), "channels must be between 1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
