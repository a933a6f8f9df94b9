"""The Xception block written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dwsep
from tests.nn.written_out import conv


@pytest.mark.parametrize("grow_first, start, repeats", [(True, True, 3), (False, True, 2), (True, False, 2)])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_xception_block_written_out(grow_first, start, repeats, downsample):
    block = dwsep.nn.XceptionBlock(6, 10, stride=2, repeats=repeats, grow_first=grow_first,
                                   start_with_activation=start, downsample=downsample)  # fmt: skip
    x = out = torch.randn(2, 6, 9, 9)
    for index, layer in enumerate(block.layers):
        out = out.relu() if index or start else out
        out = layer.norm(conv(layer.pointwise, conv(layer.depthwise, out, out.shape[1])))
    out = F.max_pool2d(out, 3, 2, 1) if downsample == "pool" else out
    shortcut = block.shortcut_norm(F.conv2d(x, block.shortcut.weight, None, 2))
    torch.testing.assert_close(block(x), out + shortcut, rtol=1e-5, atol=1e-5)
    assert block.layers[0].out_channels == (10 if grow_first else 6)


def test_xception_block_without_downsampling_adds_the_input_itself():
    block = dwsep.nn.XceptionBlock(6, 6, repeats=3)
    assert block.shortcut is None
    for layer in block.layers:
        nn.init.zeros_(layer.norm.weight)
    x = torch.randn(2, 6, 9, 9)
    assert torch.equal(block(x), x)
    assert not dwsep.nn.XceptionBlock(6, 6, residual=False).residual


@pytest.mark.parametrize("make, message", [
    (lambda n: n.XceptionBlock(4, 4, downsample="blur"), "downsample: unknown name 'blur'"),
    (lambda n: n.XceptionBlock(4, 4, padding="valid"), "padding: unknown name 'valid'"),
    (lambda n: n.XceptionBlock(4, 4, residual="always"), "residual must be 'auto' or False, got 'always'"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
