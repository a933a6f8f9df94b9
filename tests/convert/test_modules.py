"""Dense modules to separable ones, and back: the same numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import dwsep
from dwsep.convert import _modules, fit
from dwsep.nn._separated import factors_of

ORDERS = fit.ORDERS

# torch's own, of its dense convolution.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")


def convert(conv, rank, order="depthwise_first"):
    factors = fit.fit(conv.weight, min(rank, fit.largest_rank(conv.weight, order)), order=order)
    return _modules.separable(conv, factors, conv.bias)


def check_exact(conv, x, order):
    layer = convert(conv, 10**6, order).eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-5)
        dense = _modules.merged(layer)
        assert type(dense) is type(conv)
        assert dense.bias is conv.bias
        torch.testing.assert_close(dense(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", range(1, 8))
def test_full_rank_reproduces_the_layer(order, kernel):
    for stride, dilation, (padding, mode) in itertools.product(
        (1, 2), (1, 2), [(0, "zeros"), (kernel // 2, "zeros"), (1, "reflect"), (2, "replicate"), (1, "circular")]
    ):
        conv = nn.Conv2d(5, 7, kernel, stride, padding, dilation, padding_mode=mode)
        check_exact(conv, torch.randn(2, 5, 15, 16), order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "conv, size",
    [
        (nn.Conv2d(5, 6, (2, 4), padding="same"), (7, 8)),
        (nn.Conv2d(5, 6, 3, padding="valid", bias=False), (7, 8)),
        (nn.Conv2d(5, 6, (3, 5), (1, 2), (0, 3), (2, 1)), (9, 10)),
        (nn.Conv2d(5, 6, 4, padding="same", dilation=3, padding_mode="reflect"), (17, 18)),
        (nn.Conv1d(5, 6, 7, 2, 3), (30,)),
        (nn.Conv3d(3, 4, (1, 3, 2), padding=(0, 1, 1)), (4, 5, 6)),
        (nn.Conv2d(5, 6, 3, 2, 1, dtype=torch.float64), (9, 9)),
    ],
)
def test_full_rank_reproduces_other_layers(order, conv, size):
    check_exact(conv, torch.randn(2, conv.in_channels, *size, dtype=conv.weight.dtype), order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_any_rank_computes_its_factors_product(order, rank):
    conv = nn.Conv2d(6, 5, 3, padding=1)
    layer = convert(conv, rank, order)
    x = torch.randn(2, 6, 9, 9)
    wanted = torch.conv2d(x, _modules.merged(layer).weight, conv.bias, padding=1)
    for mode in (True, False):
        layer.train(mode)
        with torch.set_grad_enabled(mode):
            torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer(x[0]), wanted[0], rtol=1e-4, atol=1e-5)
    macs = 9 * 9 * rank * {"depthwise_first": 6 * (9 + 5), "pointwise_first": 5 * (9 + 6)}[order]
    assert dwsep.analysis.count(layer, x[:1]).macs == macs


def test_device_dtype_mode_and_gradients_stay():
    conv = nn.Conv2d(6, 8, 3, dtype=torch.bfloat16).eval()
    conv.weight.requires_grad_(False)
    layer = convert(conv, 2)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in layer.modules())
    assert [p.requires_grad for p in factors_of(layer)] == [False, False]
    assert layer.pointwise.bias is conv.bias
    assert conv.bias.requires_grad


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_layers_of_any_origin_merge(multiplier, order, padding):
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6, 3, padding=padding, depth_multiplier=multiplier, order=order)
    x = torch.randn(2, 4, 8, 9)
    if order == "pointwise_first" and padding == "same":
        assert _modules.why_not_merged(layer) == "zeros padded after a bias"
        layer.pointwise.bias = None
    assert _modules.why_not_merged(layer) is None
    torch.testing.assert_close(_modules.merged(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"inner_norm": "batch"}, "a norm or an activation between its factors"),
        ({"activation": "relu"}, "a norm, an activation or a residual of its own"),
        ({"padding": "same_tf", "stride": 2}, "a padding that torch's dense convolution does not have"),
        ({"padding": [(0, 1), (0, 1)]}, "a padding that torch's dense convolution does not have"),
    ],
)
def test_layers_without_a_dense_equal(options, reason):
    assert _modules.why_not_merged(dwsep.nn.DepthwiseSeparableConv2d(4, 6, 3, **options)) == reason
