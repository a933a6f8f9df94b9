"""The temporal block: written out, its receptive field, its stream."""

from __future__ import annotations

import pytest
import torch

import dwsep


@pytest.mark.parametrize("kernel, dilations", [(3, (1, 2, 4)), (2, (1,)), (5, (3, 1, 7))])
@pytest.mark.parametrize("padding", ["causal", "same"])
def test_temporal_block_receptive_field_is_what_gradients_reach(kernel, dilations, padding):
    block = dwsep.nn.TemporalBlock(3, 5, kernel, dilations, padding=padding, activation=None, norm=None)
    assert block.receptive_field == 1 + (kernel - 1) * sum(dilations)
    x = torch.randn(1, 3, 160, requires_grad=True)
    block(x)[0, :, 80].sum().backward()
    reached = x.grad[0].abs().sum(0).nonzero().flatten()
    assert int(reached.max() - reached.min()) + 1 == block.receptive_field
    assert padding == "same" or int(reached.max()) == 80


def test_temporal_block_streams():
    block = dwsep.nn.TemporalBlock(3, 5, 3, (1, 2, 4), dropout=0.1).eval()
    x = torch.randn(2, 3, 40)
    with torch.no_grad():
        whole, state, outputs, start = block(x), None, [], 0
        for size in (1, 7, 20, 2, 10):
            out, state = block.step(x[..., start : start + size], state)
            outputs.append(out)
            start += size
        single, _ = block.step(x[..., 0])
    streamed = torch.cat(outputs, -1)
    torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single, whole[..., 0], rtol=1e-5, atol=1e-5)
    if dwsep.ops.native_status().loaded:
        assert torch.equal(streamed, whole)
        assert torch.equal(single, whole[..., 0])


def test_temporal_block_written_out():
    block = dwsep.nn.TemporalBlock(3, 5, 3, (1, 2))
    x = torch.randn(2, 3, 20)
    first, second = block.layers
    out = first.shortcut(x) + first.conv(x)
    torch.testing.assert_close(block(x), out + second.conv(out), rtol=1e-5, atol=1e-5)
    assert second.shortcut is None


@pytest.mark.parametrize("make, message", [
    (lambda n: n.TemporalBlock(4, 4, padding="valid"), "padding: unknown name 'valid'"),
    (lambda n: n.TemporalBlock(4, 4, dilations=()), "number of dilations must be between 1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
