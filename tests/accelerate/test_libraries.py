"""Networks as timm and torchvision build them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import dwsep
from dwsep.accelerate import _training
from dwsep.accelerate.stepwise import Inference, taken_apart
from dwsep.bench.network_problem import saved_bytes
from tests.accelerate.toys import check_step, distance, program_runs, randomise, smooth

timm = pytest.importorskip("timm", reason="timm is an extra")
models = pytest.importorskip("torchvision", reason="torchvision is an extra").models

FEW = [
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "legacy_xception",
    "mixnet_s",
    "mobilenetv4_conv_small",
    "tf_efficientnet_b0",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/mnasnet0_5",
]


def create(name, **options):
    torch.manual_seed(0)
    library, _, plain = name.rpartition("/")
    if library:
        if "deeplab" in plain or "lraspp" in plain:
            return models.get_model(plain, weights=None, weights_backbone=None, **options)
        return models.get_model(plain, weights=None, **options)
    return timm.create_model(name, **options)


@pytest.mark.parametrize("name", FEW)
def test_inference_matches_eager(name):
    net = randomise(create(name)).eval()
    plain = copy.deepcopy(net)
    keys = list(net.state_dict())
    report = dwsep.accelerate_(net)
    assert report.fused
    assert list(net.state_dict()) == keys
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        for _ in range(2):  # its shape is new, then known
            assert distance(net(x), expected) < 1e-5
        assert program_runs(net)
        if name == "mobilenetv3_large_100":
            again = pickle.loads(pickle.dumps(net))
            assert distance(again(x), expected) < 1e-5
            assert program_runs(again)


TRAINED = ["mobilenetv3_large_100", "efficientnet_b0", "mixnet_s", "torchvision/mobilenet_v2"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_step_matches_eager(name, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = smooth(randomise(create(name)))
    for module in net.modules():
        if type(module).__name__ in ("Dropout", "DropPath"):
            module.eval()  # random masks in float64 are others
    dwsep.accelerate_(net)
    check_step(net, torch.randn(4, 3, 64, 64), both_layouts=True)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0"])
def test_saves_at_most_half_of_eager_for_backward(name, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = create(name)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(4, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    # MobileNetV3 keeps 3 of 5 tensors in a block whose gate comes after a ReLU: 0.502 of eager's at 224 pixels.
    assert saved_bytes(net, x) <= (0.51 if name == "mobilenetv3_large_100" else 0.5) * saved_bytes(plain, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_and_strided_shortcuts_run_natively(dtype, monkeypatch):
    net = randomise(create("xception41")).eval().to(dtype)
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        expected = net(x).float()
        dwsep.accelerate_(net)
        net(x)
        apart = taken_apart(net, training=False)
        assert isinstance(apart, Inference)
        assert all(step.native for step in apart.steps(x))
        # Step by step as well: each finds what it takes.
        monkeypatch.setattr(torch.nn.Linear, "forward", None)
        monkeypatch.setattr(torch.nn.Conv2d, "forward", None)
        made = apart.run_steps(x, lambda _, run: run()).float()
    assert distance(made, expected) < (1e-5 if dtype is torch.float32 else 0.05)


def test_convnext_runs_its_convolutions_on_native_kernels():
    net = create("convnext_atto").eval()
    plain = copy.deepcopy(net)
    report = dwsep.accelerate_(net)
    kinds = [line.what for line in report.fused]
    assert [kinds.count(kind) for kind in ("7x7 depthwise", "1x1, gelu")] == [12, 12]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert distance(net(x), plain(x)) < 1e-5
    check_step(randomise(net).train(), x, both_layouts=True)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "torchvision/resnet18"])
def test_features_are_accelerated_without_the_root(name):
    net = randomise(create(name)).eval()
    report = dwsep.accelerate_(net)
    if name.endswith("resnet18"):
        assert not report.fused
        return
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert distance(net.forward_features(x), type(net).forward_features(copy.deepcopy(net), x)) < 1e-5
        assert program_runs(net.blocks)
