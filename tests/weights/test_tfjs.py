"""Models of TensorFlow.js, written by hand as its converter writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import dwsep
from tests.weights.keras_layers import call, import_keras, randomise


def save(folder, arrays, topology=None, quantise=None, shards=2):
    """Write arrays as model.json and ``shards`` binary files."""
    content, entries = b"", []
    for name, array in arrays.items():
        entry = {"name": name, "shape": list(array.shape), "dtype": "float32"}
        stored = array.astype("<f4")
        if quantise == "uint8":
            scale = float(np.ptp(array)) / 255 or 1.0
            stored = np.round((array - array.min()) / scale).astype("u1")
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": float(array.min())}
        elif quantise == "float16":
            stored = array.astype("<f2")
            entry["quantization"] = {"dtype": "float16"}
        content += stored.tobytes()
        entries.append(entry)
    size = -(-len(content) // shards)
    paths = [f"group1-shard{index + 1}of{shards}.bin" for index in range(shards)]
    for index, path in enumerate(paths):
        (folder / path).write_bytes(content[index * size : (index + 1) * size])
    model = {"format": "layers-model", "weightsManifest": [{"paths": paths, "weights": entries}]}
    if topology is not None:
        model["modelTopology"] = {"keras_version": "2.15.0", "model_config": topology}
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


@pytest.mark.parametrize("with_topology", [True, False])
def test_network_equals_keras(tmp_path, with_topology):
    keras = import_keras()
    layers = keras.layers
    theirs = keras.Sequential([
        keras.Input((9, 10, 4)),
        layers.SeparableConv2D(6, 3, padding="same", strides=2, name="sep"),
        layers.BatchNormalization(epsilon=0.02, name="norm"),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="dw"),
        layers.Conv2D(5, 1, name="point"),
    ])  # fmt: skip
    randomise(theirs)
    arrays = {}
    for layer in theirs.layers:
        for variable in layer.weights:
            key = variable.path.rsplit("/", 1)[-1]
            key = "depthwise_kernel" if layer.name == "dw" and key == "kernel" else key
            arrays[f"{layer.name}/{key}"] = variable.value.detach().numpy()
    topology = json.loads(theirs.to_json()) if with_topology else None
    path = save(tmp_path, arrays, topology)
    ours = nn.Sequential(
        dwsep.nn.DepthwiseSeparableConv2d(4, 6, 3, 2, "same_tf", norm="batch"),
        dwsep.nn.DepthwiseConv2d(6, 3, padding="same", depth_multiplier=2),
        nn.Conv2d(12, 5, 1),
    ).eval()
    report = dwsep.weights.load(ours, path)
    assert not report.unused
    if with_topology:
        assert [(match.name, match.what) for match in report.settings] == [("0.norm.eps", "0.02")]
    else:
        ours[0].norm.eps = 0.02
    x = torch.randn(2, 4, 9, 10)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), call(theirs, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantise, tolerance", [("uint8", 1 / 255), ("float16", 2e-3)])
def test_quantised_weights(tmp_path, quantise, tolerance):
    rng = np.random.default_rng(0)
    kernel = rng.uniform(-1, 1, (3, 3, 4, 2)).astype("f")
    point = rng.uniform(-1, 1, (1, 1, 8, 5)).astype("f")
    path = save(tmp_path, {"sep/depthwise_kernel": kernel, "sep/pointwise_kernel": point}, quantise=quantise, shards=3)
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 5, depth_multiplier=2, bias=False)
    dwsep.weights.load(layer, path)
    for c in range(4):
        for m in range(2):
            expected = torch.from_numpy(kernel[:, :, c, m].copy())
            torch.testing.assert_close(layer.depthwise.weight[2 * c + m, 0].detach(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        layer.pointwise.weight[:, :, 0, 0].detach(), torch.from_numpy(point[0, 0].T.copy()), rtol=0, atol=tolerance
    )


def test_faults_are_named(tmp_path):
    path = save(tmp_path, {"sep/depthwise_kernel": np.ones((3, 3, 4, 1), "f")})
    (tmp_path / "group1-shard2of2.bin").write_bytes(b"")
    with pytest.raises(dwsep.ArgumentError, match="sep/depthwise_kernel needs 144 bytes"):
        dwsep.weights.read(path)
    model = json.loads(path.read_text())
    model["weightsManifest"][0]["weights"][0]["dtype"] = "complex64"
    path.write_text(json.dumps(model))
    with pytest.raises(dwsep.ArgumentError, match="has dtype 'complex64', which is not supported"):
        dwsep.weights.read(path)
