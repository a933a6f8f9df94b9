"""Files of separated networks that are not of this package: the weights, and the form of each layer that changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from torch import nn

from dwsep.errors import ArgumentError
from dwsep.networks import _safetensors
from dwsep.networks._weights import read_model
from dwsep.nn._separated import restructure_, structure_of

FORMAT = "dwsep-separated"


def save(path: str | os.PathLike[str], model: nn.Module, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a separated network to a safetensors file, atomically.

    Args:
        path: the file; one that exists is replaced.
        model: a network that :func:`dwsep.separate_` changed, in one call or several, trained since or not.
        metadata: texts to keep beside, such as how to build the dense network.

    Raises:
        ArgumentError: (a ``ValueError``) no layer of the model is separated.
        ImportError: safetensors is missing (extra "train").
        OSError: the file cannot be written.
    """
    structure = structure_of(model)
    if not structure:
        raise ArgumentError("model has no layer that separate_ changed: its state_dict() says all there is to say")
    texts = {**(metadata or {}), "format": FORMAT, "structure": json.dumps(structure)}
    _safetensors.write(path, dict(model.state_dict()), texts)


def load_(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, str]:
    """Make a freshly built dense network the separated one of a file: its layers and its weights, in place.

    :func:`dwsep.networks.load_model` does it for the package's own networks, and builds them, too.

    Args:
        model: a network as the one that was separated was before.
        path: a file that :func:`save`, ``dwsep separate`` or, of a separated network, ``dwsep train`` wrote.

    Returns:
        The texts that were kept beside the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is missing (extra "train").
        ValueError: the file is damaged, no separated network, or one of another dense network.
    """
    tensors, texts = _safetensors.read(path)
    structure = {}
    if texts.get("format") == FORMAT:
        structure = json.loads(texts.get("structure", "{}"))
    elif "model" in texts:
        tensors, info = read_model(path)
        structure = info.structure
    if not structure:
        raise ValueError(f"{path} holds no network that dwsep separated")
    try:
        restructure_(model, structure)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
    return texts
