"""MobileNetV3 against its published figures."""

from __future__ import annotations

import pytest
import torch

from dwsep.analysis import count
from dwsep.networks.mobilenet_v3 import MobileNetV3, mobilenet_v3_large, mobilenet_v3_small


@pytest.mark.parametrize(
    ("factory", "parameters", "macs"),
    # Howard et al. 2019, Table 3: in millions, as printed there.
    [(mobilenet_v3_large, 5.4, 219), (mobilenet_v3_small, 2.5, 56)],
)
def test_mobilenet_v3_costs_what_the_paper_says(factory, parameters, macs):
    with torch.device("meta"):
        model = factory(1000)
    cost = count(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.1)
    assert cost.macs / 1e6 == pytest.approx(macs, rel=0.03)


@pytest.mark.parametrize("factory", [mobilenet_v3_large, mobilenet_v3_small])
def test_mobilenet_v3_small_stem_ends_at_an_eighth(factory):
    with torch.device("meta"):
        model = factory(10, stem="small", width_multiplier=0.25)
    assert model.features(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (4, 4)


def test_mobilenet_v3_refuses_an_unknown_size():
    with pytest.raises(ValueError, match="size: unknown name 'huge'; valid names are 'large', 'small'"):
        MobileNetV3(10, "huge")
