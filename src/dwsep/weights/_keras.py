"""Files of Keras 2 and 3: .h5 of whole models and of weights, .weights.h5 and .keras."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dwsep.errors import ArgumentError
from dwsep.weights import _tensorflow

_Layer = tuple[str, str, dict[str, Any], dict[str, np.ndarray]]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by layer and name, and settings (the norms' eps), of a file."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, kind, config, arrays in _layers(path):
        for key, tensor in _tensorflow.layer_tensors(kind, arrays).items():
            tensors[f"{name}.{key}"] = tensor
        settings[f"{name}.kind"] = _tensorflow.kind_of(kind, arrays)
        if "epsilon" in config:
            settings[f"{name}.eps"] = float(config["epsilon"])
    if not tensors:
        raise ArgumentError(f"{path} holds no weights that Keras wrote")
    return tensors, settings


def _layers(path: Path) -> Iterator[_Layer]:
    h5py = _import()
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                content = io.BytesIO(archive.read("model.weights.h5"))
            with h5py.File(content, "r") as file:
                yield from _numbered(file, config)
            return
        with h5py.File(path, "r") as file:
            if "layers" in file or "_layer_checkpoint_dependencies" in file:
                yield from _numbered(file, {})
                return
            config = json.loads(_text(file.attrs["model_config"])) if "model_config" in file.attrs else {}
            configs = {c["name"]: (kind, c) for kind, c in _configs(config)}
            group = file.get("model_weights", file)
            for name in group.attrs["layer_names"]:
                yield from _named(group[_text(name)], configs)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"{path} is damaged or no file of Keras ({error})") from error


def _named(group: Any, configs: dict[str, tuple[str, dict[str, Any]]]) -> Iterator[_Layer]:
    """A layer of a file which names its arrays, as Keras 2 writes; one that is a model gives several."""
    own = group.name.rsplit("/", 1)[-1]
    found: dict[str, dict[str, np.ndarray]] = {}
    for entry in group.attrs["weight_names"]:
        path = _text(entry)
        scope, _, name = path.rpartition("/")
        # Keras appends a number where it built the model twice; inside a nested model the scope names the layer.
        inner = scope.rpartition("/")[2]
        layer = inner if inner in configs and configs[inner][0] not in ("Functional", "Model", "Sequential") else own
        found.setdefault(layer, {})[name.split(":")[0]] = np.asarray(group[path])
    for layer, arrays in found.items():
        kind, config = configs.get(layer, ("", {}))
        yield layer, kind, config, arrays


def _numbered(file: Any, config: dict[str, Any]) -> Iterator[_Layer]:
    """Layers of a file which numbers its arrays, as Keras 3 writes, by the order of the model's configuration."""
    by_path = dict(_paths(config, ""))

    def visit(group: Any, path: str) -> Iterator[_Layer]:
        if "vars" in group and len(group["vars"]):
            variables = group["vars"]
            arrays = [np.asarray(variables[key]) for key in sorted(variables, key=int)]
            kind, layer = by_path.get(path, (_class_name(path), {}))
            name = layer.get("name") or _text(variables.attrs.get("name", "")) or _text(group.attrs.get("name", ""))
            names = _tensorflow.array_names(kind, layer, len(arrays))
            yield name or path.rsplit("/", 1)[-1], kind, layer, dict(zip(names, arrays, strict=True))
        children = [key for key in group if key not in ("vars", "optimizer") and hasattr(group[key], "keys")]
        paths = {f"{path}/{key}".lstrip("/"): group[key] for key in children}
        for inner in sorted(paths, key=lambda inner: (order.get(inner, len(order)), _natural(inner))):
            yield from visit(paths[inner], inner)

    order = {path: index for index, path in enumerate(by_path)}
    yield from visit(file, "")


def _natural(text: str) -> list[Any]:
    """A key which sorts conv_2 before conv_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _paths(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Where Keras 3 puts each layer: by its class in snake case, numbered in the model's order."""
    used: dict[str, int] = {}
    for layer in config.get("config", {}).get("layers", []) if isinstance(config.get("config"), dict) else []:
        stem = _snake(layer["class_name"])
        count = used.get(stem, 0)
        used[stem] = count + 1
        path = f"{prefix}layers/{stem}" + (f"_{count}" if count else "")
        yield path, (layer["class_name"], layer["config"])
        yield from _paths(layer, f"{path}/")


def _configs(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and configuration of every layer, also inside nested models."""
    inner = config.get("config", {})
    for layer in inner if isinstance(inner, list) else inner.get("layers", []):
        own = {"name": layer.get("name"), **layer["config"]} if isinstance(layer["config"], dict) else layer
        yield layer["class_name"], own
        yield from _configs(layer)


def _snake(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _class_name(path: str) -> str:
    """A layer's class from where Keras 3 put it, for files without a configuration."""
    stem = re.sub(r"_\d+$", "", path.rsplit("/", 1)[-1])
    known = ("SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D", "BatchNormalization")
    return next((kind for kind in known if _snake(kind) == stem), "")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _import() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Keras\'s files need h5py; install it with: pip install "dwsep[keras]"') from error
    return h5py
