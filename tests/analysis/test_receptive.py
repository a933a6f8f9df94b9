"""Receptive fields."""

import torch
from torch import nn

from dwsep.analysis.cost import analyse


def test_receptive_field_of_transposed_dilated_and_pooled():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, dilation=4, padding=4), nn.ConvTranspose2d(1, 1, 2, 2))
    fields = [layer.receptive_field for layer in analyse(model, torch.randn(1, 1, 32, 32)).layers]
    assert fields == [(2, 2), (18, 18), (18, 18)]
