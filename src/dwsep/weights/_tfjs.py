"""Layers models of TensorFlow.js: model.json and the binary files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dwsep.errors import ArgumentError
from dwsep.weights import _tensorflow
from dwsep.weights._keras import _configs


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by layer and name, and settings (the norms' eps), of a model."""
    try:
        model = json.loads(path.read_text())
        manifest = model["weightsManifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{path} is not a model of TensorFlow.js: it has no weightsManifest") from error
    topology = model.get("modelTopology") or {}
    config = topology.get("model_config", topology)
    kinds = {own["name"]: (kind, own) for kind, own in _configs(config)} if "config" in config else {}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for group in manifest:
        for name, array in _group(path.parent, group):
            layer, _, key = name.rpartition("/")
            layer = layer.rpartition("/")[2] if layer.rpartition("/")[2] in kinds else layer
            layers.setdefault(layer, {})[key] = array
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for layer, arrays in layers.items():
        kind, own = kinds.get(layer, ("", {}))
        for key, tensor in _tensorflow.layer_tensors(kind, arrays).items():
            tensors[f"{layer}.{key}"] = tensor
        settings[f"{layer}.kind"] = _tensorflow.kind_of(kind, arrays)
        if "epsilon" in own:
            settings[f"{layer}.eps"] = float(own["epsilon"])
    return tensors, settings


def _group(folder: Path, group: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The arrays of one group of the manifest, whose files follow each other as if they were one."""
    content = b"".join((folder / name).read_bytes() for name in group["paths"])
    arrays, offset = [], 0
    for entry in group["weights"]:
        shape, quantised = entry["shape"], entry.get("quantization")
        stored = quantised["dtype"] if quantised else entry["dtype"]
        if stored not in ("float32", "int32", "float16", "uint8", "uint16", "bool"):
            raise ArgumentError(f"{entry['name']} has dtype {stored!r}, which is not supported")
        dtype = np.dtype(stored).newbyteorder("<")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if offset + size > len(content):
            raise ArgumentError(f"{entry['name']} needs {offset + size} bytes of {group['paths']}, got {len(content)}")
        array = np.frombuffer(content[offset : offset + size], dtype).reshape(shape)
        offset += size
        if quantised and stored in ("uint8", "uint16"):
            array = array.astype(np.float32) * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        arrays.append((entry["name"], array.astype(entry["dtype"])))
    return arrays
