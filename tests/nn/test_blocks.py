"""What blocks compute, written out; their options, and what they refuse. tests/weights compares them with libraries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dwsep


def conv(module, x, groups=1, dilation=1):
    """A block's convolution by torch's own function, padded to keep the size at stride 1."""
    pad = [d * (k - 1) // 2 for k, d in zip(module.kernel_size, (dilation, dilation))]
    return F.conv2d(x, module.weight, module.bias, module.stride, pad, dilation, groups)


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


def test_convnext_block_written_out():
    block = dwsep.nn.ConvNeXtBlock(8, layer_scale=0.5)
    x = torch.randn(2, 8, 9, 9)
    out = F.layer_norm(conv(block.depthwise, x, 8).movedim(1, -1), (8,), block.norm.weight, block.norm.bias, 1e-6)
    out = block.project(F.gelu(block.expand(out))) * 0.5
    torch.testing.assert_close(block(x), x + out.movedim(-1, 1), rtol=1e-5, atol=1e-5)
    assert dwsep.nn.ConvNeXtBlock(8, layer_scale=None).layer_scale is None


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


@pytest.mark.parametrize("sizes, splits", [((3,), (10,)), ((3, 5), (5, 5)), ((3, 5, 7, 9), (4, 2, 2, 2))])
def test_mixconv_written_out(sizes, splits):
    layer = dwsep.nn.MixConv2d(10, sizes, 2)
    assert layer.splits == splits
    x = torch.randn(2, 10, 12, 11)
    parts = [conv(branch, part, part.shape[1]) for branch, part in zip(layer.branches, x.split(splits, 1))]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


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


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2, 2)
    out = dwsep.nn.DropPath(0.25)(x)
    values = out.flatten(1)
    assert (values == values[:, :1]).all()
    assert values[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert dwsep.nn.DropPath(0.25).eval()(x) is x


@pytest.mark.parametrize("make, message", [
    (lambda n: n.InvertedResidual(4, 4, expansion=0), "expansion must be positive, got 0"),
    (lambda n: n.InvertedResidual(4, 8, residual=True), "residual needs stride 1 and in_channels == out_channels"),
    (lambda n: n.InvertedResidual(4, 4, drop_path=1), "drop_path must be at least 0 and below 1, got 1"),
    (lambda n: n.SqueezeExcite(4, 0), "squeeze_channels must be between 1"),
    (lambda n: n.SqueezeExcite(4, 2, gate="tanh"), "gate: unknown name 'tanh'; valid names are 'sigmoid'"),
    (lambda n: n.DropPath(-0.1), "probability must be at least 0 and below 1, got -0.1"),
    (lambda n: n.XceptionBlock(4, 4, downsample="blur"), "downsample: unknown name 'blur'"),
    (lambda n: n.XceptionBlock(4, 4, padding="valid"), "padding: unknown name 'valid'"),
    (lambda n: n.XceptionBlock(4, 4, residual="always"), "residual must be 'auto' or False, got 'always'"),
    (lambda n: n.SeparableASPP(4, 4, dropout=1), "dropout must be at least 0 and below 1, got 1"),
    (lambda n: n.TemporalBlock(4, 4, padding="valid"), "padding: unknown name 'valid'"),
    (lambda n: n.TemporalBlock(4, 4, dilations=()), "number of dilations must be between 1"),
    (lambda n: n.MixConv2d(2, (3, 5, 7)), "kernel_sizes must be between 1 and in_channels = 2 sizes, got 3"),
    (lambda n: n.MixConv2d(4, (3,), padding="valid"), "padding must be 'same' or 'same_tf'"),
    (lambda n: n.ConvNeXtBlock(0), "channels must be between 1"),
])  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(dwsep.ArgumentError, match=message):
        make(dwsep.nn)
