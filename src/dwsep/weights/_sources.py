"""Where weights come from: modules, state dicts, and the files of PyTorch, Keras and TensorFlow.js."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError


class Source(NamedTuple):
    """Weights by name, in torch's layouts.

    Attributes:
        library: where they are from: "keras", "tfjs", or "torch" for everything that is a state dict.
        tensors: name to tensor; a Keras layer's are named ``<layer>.weight``, ``<layer>.depthwise.weight`` and so on.
        settings: values other than tensors by name: a layer's ``<layer>.eps``, and ``<layer>.kind``, what it is.
    """

    library: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def read(source: Any) -> Source:
    """The weights of a file, a state dict or a module, by name and in torch's layouts.

    Args:
        source: a ``torch.nn.Module``, a dict of tensors, or the path of a file: ``.pth``, ``.pt``, ``.bin`` (weights
            alone, no pickled code is run) and ``.safetensors`` of PyTorch, ``.h5``, ``.hdf5`` and ``.keras`` of Keras
            2 and 3, ``.json`` of TensorFlow.js with its binary files beside it.

    Returns:
        Names and tensors; for Keras and TensorFlow.js the names are ``<layer>.<tensor>``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package that the format needs is missing; the message names the extra.
        ArgumentError: (a ``ValueError``) the file is of no known kind, or not what its name says.
        TypeError: no source.

    Example:
        >>> import torch
        >>> list(read(torch.nn.Conv2d(4, 4, 3, groups=4)).tensors)
        ['weight', 'bias']
    """
    if isinstance(source, nn.Module):
        return Source("torch", dict(source.state_dict()), {})
    if isinstance(source, dict):
        wrong = [name for name, value in source.items() if not isinstance(value, Tensor)]
        if wrong:
            raise TypeError(f"source must hold tensors alone, got {type(source[wrong[0]]).__name__} for {wrong[0]!r}")
        return Source("torch", source, {})
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a module, a dict of tensors or a path, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"source {path} does not exist" if not path.exists() else f"{path} is not a file")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5", ".keras"):
        from dwsep.weights import _keras

        return Source("keras", *_keras.read(path))
    if suffix == ".json":
        from dwsep.weights import _tfjs

        return Source("tfjs", *_tfjs.read(path))
    if suffix == ".safetensors":
        from dwsep.networks import _safetensors

        return Source("torch", _safetensors.read(path)[0], {})
    if suffix in (".pth", ".pt", ".bin"):
        return Source("torch", _state_of(_load(path), path), {})
    raise ArgumentError(
        f"source: unknown kind of file {path.name!r}; known are .pth, .pt, .bin, .safetensors, .h5, .hdf5, .keras and "
        "TensorFlow.js's .json"
    )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zipfile and torch, and of what damaged bytes make them stumble over
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ArgumentError(
            f"{path} is damaged, or holds more than tensors, which torch.load does not read with weights_only=True; "
            f"torch.save(model.state_dict(), path) writes what can be read ({type(error).__name__}: {reason})"
        ) from error


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, which may lie under a name of its own."""
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} holds no state dict but a {type(content).__name__}")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ArgumentError(f"{path} holds no tensors")
    return tensors
