"""DeepLabV3+: sizes, options, errors; its numbers are compared in test_published.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dwsep.networks.deeplab_v3_plus import DeepLabV3Plus

SMALL = {"width_multiplier": 0.25, "decoder_channels": 64}


@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_gives_a_logit_per_class_and_pixel(size, output_stride):
    model = DeepLabV3Plus(4, in_channels=2, output_stride=output_stride, **SMALL).eval()
    assert model(torch.randn(1, 2, *size)).shape == (1, 4, *size)


def test_deeplab_takes_xception_as_encoder():
    with torch.device("meta"):
        model = DeepLabV3Plus(4, encoder="xception", **SMALL).eval()
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 4, 64, 64)
    assert len(model.encoder) == 2 + 20 + 3


def test_deeplab_pyramid_dilates_with_the_output_stride():
    for output_stride, dilations in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        branches = DeepLabV3Plus(2, output_stride=output_stride, **SMALL).aspp.branches
        assert [branch.dilation[0] for branch in branches] == dilations
    twin = DeepLabV3Plus(2, dilations=(2, 4), dense=True, **SMALL)
    assert [branch.conv.dilation for branch in twin.aspp.branches] == [(2, 2), (4, 4)]


def test_deeplab_enlarges_what_it_sees():
    model, x, seen = DeepLabV3Plus(4, enlarge=2, **SMALL).eval(), torch.randn(2, 3, 45, 38), []
    model.encoder[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert model(x).shape == (2, 4, 45, 38)
    assert torch.equal(seen[0], F.interpolate(x, size=(90, 76), mode="bilinear", align_corners=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "vgg"}, "encoder: unknown name 'vgg'; valid names are 'mobilenet_v2', 'xception'"),
        ({"output_stride": 32}, r"output_stride must be one of \(8, 16\), got 32"),
        ({"dilations": ()}, r"dilations must be positive integers, at least one, got \(\)"),
        ({"dilations": (0,)}, "dilations must be a positive integer, got 0"),
        ({"enlarge": 0}, "enlarge must be a positive integer, got 0"),
        ({"decoder_channels": -1}, "decoder_channels must be a positive integer, got -1"),
    ],
)
def test_deeplab_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DeepLabV3Plus(2, **options)
