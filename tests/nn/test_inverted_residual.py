"""The inverted residual block written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dwsep
from tests.nn.written_out import conv


@pytest.mark.parametrize("expansion, squeeze, stride", [(1, None, 1), (4, None, 2), (4, 3, 1), (0.5, 2, 1)])
def test_inverted_residual_written_out(expansion, squeeze, stride):
    block = dwsep.nn.InvertedResidual(8, 8, 5, stride, dilation=2, expansion=expansion, squeeze_channels=squeeze,
                                      squeeze_gate="hardsigmoid", activation="hardswish")  # fmt: skip
    x = out = torch.randn(2, 8, 9, 9)
    if expansion != 1:
        out = F.hardswish(block.expand_norm(conv(block.expand, out)))
    out = F.hardswish(block.depthwise_norm(conv(block.depthwise, out, out.shape[1], 2)))
    if squeeze:
        se = block.squeeze_excite
        out = out * F.hardsigmoid(conv(se.expand, conv(se.reduce, F.adaptive_avg_pool2d(out, 1)).relu()))
    out = block.project_norm(conv(block.project, out))
    torch.testing.assert_close(block(x), out + x if stride == 1 else out, rtol=1e-5, atol=1e-5)
    assert hasattr(block, "expand") == (expansion != 1)


@pytest.mark.parametrize("make, message", [
    (lambda n: n.InvertedResidual(4, 4, expansion=0), "expansion must be positive, got 0"),
    (lambda n: n.InvertedResidual(4, 8, residual=True), "residual needs stride 1 and in_channels == out_channels"),
    (lambda n: n.InvertedResidual(4, 4, drop_path=1), "drop_path must be at least 0 and below 1, got 1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
