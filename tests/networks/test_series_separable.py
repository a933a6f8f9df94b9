"""The network for series: lengths, missing values, errors."""

from __future__ import annotations

import pytest
import torch

from dwsep import networks
from dwsep.accelerate import accelerate_


def make(**options):
    torch.manual_seed(3)
    model = networks.create("series_separable", num_classes=3, in_channels=2, width_multiplier=0.25, **options)
    model(torch.randn(16, 2, 30))  # statistics that are not the initial ones
    return model.eval()


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_padding_changes_nothing(dense, accelerated):
    model = make(dense=dense)
    if accelerated:
        accelerate_(model)
    series = [torch.randn(2, length) for length in (7, 31, 12)]
    padded = torch.full((3, 2, 40), float("nan"))
    for row, values in zip(padded, series, strict=True):
        row[:, : values.shape[1]] = values
    with torch.no_grad():
        alone = torch.cat([model(values[None]) for values in series])
        assert alone.std(0).min() > 0
        torch.testing.assert_close(model(padded), alone, rtol=1e-4, atol=1e-6)


def test_a_missing_value_is_the_mean():
    x = torch.randn(1, 2, 20)
    with_gap, with_zero = x.clone(), x.clone()
    with_gap[0, 1, 5], with_zero[0, 1, 5] = float("nan"), 0.0
    with torch.no_grad():
        torch.testing.assert_close(make()(with_gap), make()(with_zero))


def test_a_series_without_values_is_finite():
    with torch.no_grad():
        assert make()(torch.full((2, 2, 5), float("nan"))).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 20), (1, 3, 20), (1, 2, 20, 1)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2, L\), got"):
        make()(torch.zeros(shape))
