"""The recipes keep the promises that the demo makes."""

from __future__ import annotations

import pytest
import torch

from dwsep import networks
from dwsep.analysis import count
from dwsep.training.recipes import DEMO, default_network_options


def test_demo_recipe_saves_seven_eighths_nearly():
    macs = []
    for name in ("mobilenet_v1_dense", "mobilenet_v1"):
        with torch.device("meta"):
            model = networks.create(name, num_classes=10, in_channels=1, **DEMO["network_options"])
        macs.append(count(model, torch.empty(1, 1, 28, 28, device="meta")).macs_spatial)
    assert macs[0] / macs[1] > 7.5


def test_demo_recipe_gives_dense_and_separable_network_the_same_shortcuts():
    for name in ("mobilenet_v1_dense", "mobilenet_v1"):
        with torch.device("meta"):
            model = networks.create(name, num_classes=10, in_channels=1, **DEMO["network_options"])
        assert [index for index, block in enumerate(model.blocks, 1) if block.residual] == [3, 5, 7, 8, 9, 10, 11, 13]


@pytest.mark.parametrize(("image_size", "stem"), [((28, 28), "small"), ((64, 200), "small"), ((224, 224), "imagenet")])
def test_default_network_options_follow_the_image_size(image_size, stem):
    options = default_network_options(image_size)
    assert options["stem"] == stem
    network = networks.create("mobilenet_v1", num_classes=2, **options)
    assert network.eval()(torch.zeros(1, 3, *image_size)).shape == (1, 2)
