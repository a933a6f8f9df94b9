"""MobileNetV2 against its published figures and its outline."""

from __future__ import annotations

import pytest
import torch

from dwsep.analysis import count
from dwsep.networks.mobilenet_v2 import Features, MobileNetV2


@pytest.mark.parametrize(
    ("width_multiplier", "image_size", "parameters", "macs"),
    # Sandler et al. 2018, Table 4 and section 6.1: in millions, as printed there.
    [(1.0, 224, 3.4, 300), (1.4, 224, 6.9, 585)],
)
def test_mobilenet_v2_costs_what_the_paper_says(width_multiplier, image_size, parameters, macs):
    with torch.device("meta"):
        model = MobileNetV2(1000, width_multiplier=width_multiplier)
    cost = count(model, torch.empty(1, 3, image_size, image_size, device="meta"))
    # The paper counts neither norms' nor the classifier's biases the way we do.
    assert cost.parameters / 1e6 == pytest.approx(parameters, rel=0.12)
    assert cost.macs / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("stem", "image_size", "output_stride", "end"),
    [("imagenet", 224, 32, 7), ("imagenet", 224, 16, 14), ("imagenet", 224, 8, 28), ("small", 28, 32, 4)],
)
def test_features_end_at_the_stride_they_say(stem, image_size, output_stride, end):
    with torch.device("meta"):
        features = Features(3, 0.25, stem, output_stride)
    x = torch.empty(2, 3, image_size, image_size, device="meta")
    sizes = []
    for module in features:
        x = module(x)
        sizes.append(x.shape)
    assert x.shape == (2, features.out_channels, end, end)
    assert sizes[features.low_level] == (2, features.low_level_channels, image_size // 4, image_size // 4)
    assert features.low_level == 3 if stem == "imagenet" else features.low_level > 3


def test_dilated_features_have_the_weights_of_strided_ones():
    strided, dilated = Features(3, 0.25), Features(3, 0.25, output_stride=16)
    dilated.load_state_dict(strided.state_dict())
    assert {module.dilation for module in dilated.modules() if hasattr(module, "geometry")} == {(1, 1), (2, 2)}


def test_mobilenet_v2_refuses_an_unknown_stem():
    with pytest.raises(ValueError, match="stem: unknown name 'tiny'; valid names are 'imagenet', 'small'"):
        MobileNetV2(10, stem="tiny")
