"""Subseparable convolutions against dense and separable ones, whose limits they are, and against each group alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep

RANKS = {1: (dwsep.nn.SubseparableConv1d, nn.Conv1d), 2: (dwsep.nn.SubseparableConv2d, nn.Conv2d)}


@pytest.mark.parametrize("axes", RANKS)
@pytest.mark.parametrize("variant", ["subseparable", "superseparable"])
@pytest.mark.parametrize("groups, stride, dilation", [(1, 1, 1), (2, 2, 1), (4, 1, 3)])
def test_matches_each_group_alone(axes, variant, groups, stride, dilation):
    layer = RANKS[axes][0](8, 12, 3, stride, dilation=dilation, groups=groups, variant=variant, norm="batch",
                           activation="relu")  # fmt: skip
    conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d}[axes]
    x = torch.randn(2, 8, *(9, 10)[:axes])
    spatial, point = layer.spatial, layer.pointwise
    outputs = []
    for g, part in enumerate(x.chunk(groups, 1)):
        rows = lambda t: t.chunk(groups)[g]  # noqa: B023, E731
        split = part.shape[1] if variant == "superseparable" else 1
        out = conv(part, rows(spatial.weight), rows(spatial.bias), stride, dilation, dilation, split)
        if variant == "superseparable":
            out = conv(out, rows(point.weight), rows(point.bias))
        outputs.append(out)
    expected = torch.cat(outputs, 1)
    if variant == "subseparable":
        expected = conv(expected, point.weight, point.bias)
    torch.testing.assert_close(layer(x), layer.norm(expected).relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant, expected", [("subseparable", 5 * 8 * 16 // 4 + 16 * 16),
                                               ("superseparable", 5 * 8 + 8 * 16 // 4)])  # fmt: skip
def test_parameters_are_those_of_the_papers_table(variant, expected):
    layer = dwsep.nn.SubseparableConv1d(8, 16, 5, groups=4, variant=variant, bias=False)
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected


def test_as_many_groups_as_channels_is_separable():
    layer = dwsep.nn.SubseparableConv1d(8, 8, 3, groups=8)
    separable = dwsep.nn.DepthwiseSeparableConv1d(8, 8, 3)
    separable.depthwise.load_state_dict(layer.spatial.state_dict())
    separable.pointwise.load_state_dict(layer.pointwise.state_dict())
    x = torch.randn(2, 8, 9)
    torch.testing.assert_close(layer(x), separable(x), rtol=1e-5, atol=1e-5)


def test_superseparable_is_causal_on_request():
    layer = dwsep.nn.SubseparableConv1d(8, 8, 3, padding="causal", groups=2, variant="superseparable")
    x = torch.randn(1, 8, 9)
    changed = x.clone()
    changed[..., 5:] += 1
    torch.testing.assert_close(layer(x)[..., :5], layer(changed)[..., :5])


def test_refuses():
    make = dwsep.nn.SubseparableConv1d
    with pytest.raises(dwsep.ArgumentError, match="groups must divide out_channels, got 4 and 6"):
        make(8, 6, groups=4)
    with pytest.raises(dwsep.ArgumentError, match="variant: unknown name 'hyper'"):
        make(8, 8, groups=4, variant="hyper")
    with pytest.raises(dwsep.ArgumentError, match="padding must be the same at both ends"):
        make(8, 8, padding="causal", groups=4)
