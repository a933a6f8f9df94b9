"""Networks whose architecture is another library's: its weights load whole, and give its outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep


def trained(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Norms as after training, so that signals pass and a mix-up of statistics, scales or eps shows."""
    momenta = {}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            momenta[module], module.momentum = module.momentum, 1.0
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    with torch.no_grad():
        model.train()(images)
    for module, momentum in momenta.items():
        module.momentum = momentum
    return model.eval()


def torchvision_model(name, **options):
    models = pytest.importorskip("torchvision.models", reason="the comparison needs torchvision")
    return getattr(models, name)(**options)


def timm_model(name, **options):
    timm = pytest.importorskip("timm", reason="the comparison needs timm")
    return timm.create_model(name, **options)


def check(ours: nn.Module, theirs: nn.Module, size: int, channels: int = 3) -> None:
    images = torch.randn(2, channels, size, size)
    report = dwsep.weights.load(ours, trained(theirs, images))
    assert not report.missing
    assert not report.unused
    assert not report.filled
    ours.eval()
    with torch.no_grad():
        expected = theirs(images)
        spread = expected.std(0).max().item()
        assert spread > 0.05 * expected.abs().max()  # the network tells the images apart
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-3 * spread)
        report = dwsep.accelerate_(ours)
        assert len(report.fused) > 40
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-3 * spread)


@pytest.mark.parametrize("width", [1.0, 0.35])
def test_mobilenet_v2_equals_torchvision(width):
    ours = dwsep.networks.create("mobilenet_v2", num_classes=10, width_multiplier=width)
    check(ours, torchvision_model("mobilenet_v2", num_classes=10, width_mult=width), 64)


def test_mobilenet_v2_equals_timm():
    ours = dwsep.networks.create("mobilenet_v2", num_classes=10)
    check(ours, timm_model("mobilenetv2_100", num_classes=10), 64)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
@pytest.mark.parametrize("width", [1.0, pytest.param(0.75, marks=pytest.mark.sweep)])
def test_mobilenet_v3_equals_torchvision(name, width):
    ours = dwsep.networks.create(name, num_classes=10, width_multiplier=width)
    check(ours, torchvision_model(name, num_classes=10, width_mult=width), 64)


@pytest.mark.parametrize("size", ["large", "small"])
def test_mobilenet_v3_equals_timm(size):
    ours = dwsep.networks.create(f"mobilenet_v3_{size}", num_classes=10, in_channels=1, norm_eps=1e-5)
    check(ours, timm_model(f"mobilenetv3_{size}_100", num_classes=10, in_chans=1), 64, channels=1)


def test_xception_equals_timm():
    ours = dwsep.networks.create("xception", num_classes=10)
    check(ours, timm_model("legacy_xception", num_classes=10), 96)


@pytest.mark.parametrize(
    ("name", "middle_blocks"), [("xception41", 8), pytest.param("xception65", 16, marks=pytest.mark.sweep)]
)
def test_aligned_xception_equals_timm(name, middle_blocks):
    ours = dwsep.networks.create("xception", num_classes=10, variant="aligned", middle_blocks=middle_blocks)
    check(ours, timm_model(name, num_classes=10), 64)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_xception_features_equal_timm(output_stride):
    """The encoder of DeepLabV3+: what no longer strides dilates, where timm's does."""
    from dwsep.networks.xception import Features

    images = torch.randn(1, 3, 64, 64)
    theirs = trained(timm_model("xception41", num_classes=0, output_stride=output_stride), images)
    ours = dwsep.networks.create("xception", num_classes=1, variant="aligned")
    dwsep.weights.load(ours, theirs, strict=False)
    features = Features(variant="aligned", output_stride=output_stride).eval()
    features.load_state_dict(ours.features.state_dict())
    with torch.no_grad():
        expected = theirs.forward_features(images)
        assert expected.shape[-1] == 64 // output_stride
        torch.testing.assert_close(features(images), expected, rtol=1e-3, atol=1e-3 * expected.std().item())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_v3_plus_equals_smp(output_stride):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="the comparison needs segmentation_models_pytorch")
    theirs = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, encoder_output_stride=output_stride, classes=5)
    ours = dwsep.networks.create(
        "deeplab_v3_plus", num_classes=5, output_stride=output_stride, dilations=(12, 24, 36), encoder_head=True
    )
    check(ours, theirs, 64)
