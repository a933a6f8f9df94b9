"""Against Keras: separable and depthwise layers with its weights, and its files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dwsep
from tests.weights.keras_layers import call, import_keras, randomise

# Keras's own when it saves: its arrays want numpy 1, and .h5 is its old format.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]

SEPARABLE = list(itertools.product((1, 2), range(1, 6), (1, 2, 3), (1, 2, 3), ("same", "valid")))
PADDINGS = {"same": "same_tf", "valid": "valid"}


@pytest.fixture(scope="module")
def keras():
    return import_keras()


def arrays_of(layer):
    """A Keras layer's weights by the names that its files give them, in torch's layouts."""
    from dwsep.weights._tensorflow import layer_tensors

    arrays = {v.path.rsplit("/", 1)[-1]: v.value.detach().numpy() for v in layer.weights}
    return layer_tensors(type(layer).__name__, arrays)


@pytest.mark.parametrize("axes, kernel, stride, dilation, padding", SEPARABLE)
def test_separable_equals_keras(keras, axes, kernel, stride, dilation, padding):
    size = (17, 18)[:axes]
    x = torch.randn(2, 4, *size)
    for multiplier in (1, 2, 3):
        layer = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")(
            4, 6, kernel, stride, PADDINGS[padding], dilation, depth_multiplier=multiplier
        )
        theirs = getattr(keras.layers, f"SeparableConv{axes}D")(
            6, kernel, strides=stride, dilation_rate=dilation, padding=padding, depth_multiplier=multiplier
        )
        theirs.build((None, *size, 4))
        randomise(theirs)
        report = dwsep.weights.load(layer, arrays_of(theirs))
        assert len(report.matched) == 3
        with torch.no_grad():
            out = layer(x)
            torch.testing.assert_close(out, call(theirs, x), rtol=1e-5, atol=1e-5)
            # On TensorFlow, Keras refuses stride with dilation: the rule for padding is the same.
            torch.testing.assert_close(out.double(), reference(layer, x.double()), rtol=1e-5, atol=1e-5)


def reference(layer, x):
    """TensorFlow's padding rule and the two convolutions in float64."""
    pads = []
    for n, k, d, s in zip(x.shape[2:], layer.kernel_size, layer.dilation, layer.stride):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) if layer.padding == "same_tf" else 0
        pads = [total // 2, total - total // 2, *pads]
    conv = F.conv1d if x.dim() == 3 else F.conv2d
    depthwise, pointwise = layer.depthwise, layer.pointwise
    out = conv(F.pad(x, pads), depthwise.weight.double(), depthwise.bias.double(), layer.stride, 0, layer.dilation, 4)
    return conv(out, pointwise.weight.double(), pointwise.bias.double())


@pytest.mark.parametrize("axes, kernel, stride, padding", list(itertools.product((1, 2), (1, 3, 4), (1, 2, 3),
                                                                                 ("same", "valid"))))  # fmt: skip
def test_depthwise_equals_keras(keras, axes, kernel, stride, padding):
    size = (17, 18)[:axes]
    x = torch.randn(2, 4, *size)
    for multiplier in (1, 3):
        theirs = getattr(keras.layers, f"DepthwiseConv{axes}D")(
            kernel, strides=stride, padding=padding, depth_multiplier=multiplier
        )
        theirs.build((None, *size, 4))
        randomise(theirs)
        layer = getattr(dwsep.nn, f"DepthwiseConv{axes}d")(
            4, kernel, stride, PADDINGS[padding], depth_multiplier=multiplier
        )
        dwsep.weights.load(layer, arrays_of(theirs))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), call(theirs, x), rtol=1e-5, atol=1e-5)


def build(keras, scale=False):
    """A network with every kind of layer that has weights, and ours of the same outline."""
    layers = keras.layers
    theirs = keras.Sequential([
        keras.Input((13, 14, 3)),
        layers.Conv2D(6, 3, padding="same"),
        layers.BatchNormalization(epsilon=0.01),
        layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, strides=2, use_bias=False),
        layers.BatchNormalization(scale=scale),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu"),
        layers.Conv2D(5, 1, use_bias=False),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4),
    ])  # fmt: skip
    randomise(theirs)
    ours = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        dwsep.nn.DepthwiseSeparableConv2d(6, 8, 3, 2, "same_tf", depth_multiplier=2, norm="batch"),
        dwsep.nn.DepthwiseConv2d(8, 3, padding="same", depth_multiplier=2, activation="relu"),
        nn.Conv2d(16, 5, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).eval()
    nn.init.ones_(ours[2].norm.weight)
    return theirs, ours


def check(ours, theirs):
    x = torch.randn(2, 3, 13, 14)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), call(theirs, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_files_load_in_order(keras, tmp_path, name):
    alone = "weights" in name  # these files say nothing of eps, nor which of a norm's factors is missing
    theirs, ours = build(keras, scale=alone)
    path = tmp_path / name
    theirs.save_weights(path) if alone else theirs.save(path)
    report = dwsep.weights.load(ours, path, strict=False)
    assert not report.unused
    assert report.missing == (() if alone else ("2.norm.weight",))
    if alone:
        ours[1].eps, ours[2].norm.eps = 0.01, 0.001
    else:
        assert [match.what for match in report.settings] == ["0.01", "0.001"]
    check(ours, theirs)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_files_load_by_names(keras, tmp_path, name):
    theirs, ours = build(keras)
    theirs.save(tmp_path / name)
    own = [layer.name for layer in theirs.layers if layer.weights]
    names = dict(zip(("0", "1", "2", "2.norm", "3", "4", "7"), own, strict=True))
    report = dwsep.weights.load(ours, tmp_path / name, names=names, strict=False)
    assert {match.source for match in report.matched} == set(dwsep.weights.read(tmp_path / name).tensors)
    check(ours, theirs)


def test_file_of_a_functional_model_with_a_model_inside(keras, tmp_path):
    inner = keras.Sequential([keras.Input((9, 9, 4)), keras.layers.SeparableConv2D(4, 3, padding="same")], name="body")
    inputs = keras.Input((9, 9, 4))
    theirs = keras.Model(inputs, keras.layers.Add()([inner(inputs), inputs]))
    randomise(theirs)
    theirs.save(tmp_path / "model.keras")
    ours = dwsep.nn.DepthwiseSeparableConv2d(4, 4, residual="input")
    dwsep.weights.load(ours, tmp_path / "model.keras")
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), call(theirs, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_inverted_residual_equals_keras(keras, tmp_path, stride):
    """As Keras's MobileNetV2 builds it, with TensorFlow's padding at stride 2."""
    layers = keras.layers
    inputs = keras.Input((11, 12, 8))
    out = inputs
    for convolution, last in (
        (layers.Conv2D(24, 1, use_bias=False), False),
        (layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False), False),
        (layers.Conv2D(8, 1, use_bias=False), True),
    ):
        out = layers.BatchNormalization()(convolution(out))
        out = out if last else layers.ReLU(6.0)(out)
    theirs = keras.Model(inputs, out if stride == 2 else layers.Add()([inputs, out]))
    randomise(theirs)
    theirs.save(tmp_path / "block.keras")
    ours = dwsep.nn.InvertedResidual(8, 8, stride=stride, padding="same_tf", expansion=3).eval()
    report = dwsep.weights.load(ours, tmp_path / "block.keras")
    assert not report.missing
    assert not report.unused
    x = torch.randn(2, 8, 11, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), call(theirs, x), rtol=1e-4, atol=1e-5)
        dwsep.accelerate_(ours)
        torch.testing.assert_close(ours(x), call(theirs, x), rtol=1e-4, atol=1e-5)


def test_file_of_keras_2_with_names_of_arrays(tmp_path):
    """Written by hand as Keras 2 does: depthwise kernels (H, W, C, M), names with scopes and numbers."""
    h5py = pytest.importorskip("h5py", reason="Keras's files need h5py")
    rng = np.random.default_rng(0)
    kernel, point = rng.normal(size=(3, 3, 4, 2)).astype("f"), rng.normal(size=(1, 1, 8, 5)).astype("f")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv_dw", b"relu", b"sep"]
        for name, arrays in {"conv_dw": {"depthwise_kernel": kernel}, "relu": {},
                             "sep": {"depthwise_kernel": kernel, "pointwise_kernel": point}}.items():  # fmt: skip
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_1/{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                group.create_dataset(f"{name}_1/{key}:0", data=array)
    source = dwsep.weights.read(tmp_path / "old.h5")
    assert source.library == "keras"
    assert set(source.tensors) == {"conv_dw.weight", "sep.depthwise.weight", "sep.pointwise.weight"}
    for c, m in itertools.product(range(4), range(2)):
        assert np.array_equal(source.tensors["conv_dw.weight"][2 * c + m, 0].numpy(), kernel[:, :, c, m])
    model = nn.ModuleList([dwsep.nn.DepthwiseConv2d(4, 3, depth_multiplier=2, bias=False),
                           dwsep.nn.DepthwiseSeparableConv2d(4, 5, depth_multiplier=2, bias=False)])  # fmt: skip
    assert len(dwsep.weights.load(model, tmp_path / "old.h5").matched) == 3


def test_faults_of_files_are_named(keras, tmp_path):
    theirs, ours = build(keras)
    theirs.save(tmp_path / "model.keras")
    with pytest.raises(dwsep.ArgumentError, match="1 parts that are a convolution and the source 2: give names"):
        dwsep.weights.load(nn.Sequential(*ours[:4]), tmp_path / "model.keras")
    with pytest.raises(dwsep.ArgumentError, match=r"2\.norm\.weight is missing"):
        dwsep.weights.load(ours, tmp_path / "model.keras")
    (tmp_path / "broken.keras").write_bytes((tmp_path / "model.keras").read_bytes()[:500])
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    for name in ("broken.keras", "broken.h5"):
        with pytest.raises(dwsep.ArgumentError, match=f"{name} is damaged or no file of Keras"):
            dwsep.weights.read(tmp_path / name)
    with pytest.raises(dwsep.ArgumentError, match="is not a model of TensorFlow"):
        dwsep.weights.read(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        dwsep.weights.read(tmp_path / "none.h5")
