"""The blocks run fused under accelerate_: the same outputs and gradients, and what the report says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dwsep

BLOCKS = {
    "InvertedResidual": lambda: dwsep.nn.InvertedResidual(16, 16, expansion=3),
    "InvertedResidual with squeeze and excite": lambda: dwsep.nn.InvertedResidual(
        16, 24, 5, 2, expansion=3, squeeze_channels=8, activation="silu", drop_path=0.2
    ),
    "InvertedResidual without expansion": lambda: dwsep.nn.InvertedResidual(16, 16, expansion=1, drop_path=0.2),
    "XceptionBlock": lambda: dwsep.nn.XceptionBlock(16, 24, stride=2, repeats=3),
    "XceptionBlock of TensorFlow": lambda: dwsep.nn.XceptionBlock(
        16, 16, start_with_activation=False, padding="same_tf"
    ),
    "ConvNeXtBlock": lambda: dwsep.nn.ConvNeXtBlock(16, layer_scale=0.5),
    "SeparableASPP": lambda: dwsep.nn.SeparableASPP(16, 16, (1, 2, 3), dropout=0.0),
    "MixConv2d": lambda: nn.Sequential(dwsep.nn.MixConv2d(16, (3, 5, 7)), nn.BatchNorm2d(16), nn.ReLU()),
    "BlueprintSeparableConv2d": lambda: dwsep.nn.BlueprintSeparableConv2d(
        16, 16, variant="S", inner_norm="batch", norm="batch", activation="relu"
    ),
    "SqueezeExcite": lambda: nn.Sequential(
        dwsep.nn.DepthwiseConv2d(16, 3, bias=False), nn.BatchNorm2d(16), dwsep.nn.SqueezeExcite(16, 4)
    ),
    "SubseparableConv2d": lambda: dwsep.nn.SubseparableConv2d(
        16, 16, groups=4, variant="superseparable", norm="batch", activation="relu"
    ),
}
FUSED = dict.fromkeys(BLOCKS, 2) | {
    "InvertedResidual": 3, "InvertedResidual with squeeze and excite": 3, "XceptionBlock": 6,
    "XceptionBlock of TensorFlow": 4, "SeparableASPP": 8, "BlueprintSeparableConv2d": 3, "SqueezeExcite": 1,
    "ConvNeXtBlock": 0, "MixConv2d": 0, "SubseparableConv2d": 0,  # their depthwise convolutions run natively anyway
}  # fmt: skip


def randomised(block):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, dwsep.nn.DropPath):
            module.probability = 0.0  # drawn anew at every call
    return block


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_accelerated_block_matches_eager(name, memory_format):
    block = randomised(BLOCKS[name]())
    fast = copy.deepcopy(block)
    report = dwsep.accelerate_(fast)
    assert len(report.fused) >= FUSED[name], report
    x = torch.randn(2, 16, 12, 12).to(memory_format=memory_format)
    for training in (True, False):
        results = []
        for module in (block.double(), fast):
            module.train(training)
            inputs = x.to(next(module.parameters()).dtype).requires_grad_()
            out = module(inputs)
            grads = torch.autograd.grad((out * out).sum() + out.sum(), [inputs, *module.parameters()])
            results.append((out, *grads))
        scale = max(float(expected.detach().abs().max()) for expected in results[0])
        for actual, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=3e-6 * max(scale, 1))
        with torch.no_grad():
            torch.testing.assert_close(fast(x).double(), block(x.double()), rtol=1e-4, atol=1e-4)
    for key, value in block.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key].double(), value.double(), rtol=1e-5, atol=1e-5)
    dwsep.revert_(fast)
    torch.testing.assert_close(fast(x).double(), block(x.double()), rtol=1e-4, atol=1e-4)
