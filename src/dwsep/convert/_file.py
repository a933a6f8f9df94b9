"""Files of separated networks: the weights, and the form of each layer that is not as the dense network has it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from torch import nn

from dwsep.convert._api import restructure_
from dwsep.convert._report import SeparationReport
from dwsep.networks import _safetensors

FORMAT = "dwsep-separated"


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    report: SeparationReport,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a separated network to a safetensors file, atomically.

    Args:
        path: the file; one that exists is replaced.
        model: the network that :func:`dwsep.separate_` changed.
        report: what it returned.
        metadata: texts to keep beside, such as how to build the dense network.

    Raises:
        ImportError: safetensors is missing (extra "train").
        OSError: the file cannot be written.
    """
    texts = {**(metadata or {}), "format": FORMAT, "structure": json.dumps(report.structure)}
    _safetensors.write(path, dict(model.state_dict()), texts)


def load_(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, str]:
    """Make a freshly built dense network the separated one of a file: its layers and its weights, in place.

    Args:
        model: a network as the one that was separated was before.
        path: a file that :func:`save` or ``dwsep separate`` wrote.

    Returns:
        The texts that were kept beside the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is missing (extra "train").
        ValueError: the file is damaged, no separated network, or one of another dense network.
    """
    tensors, texts = _safetensors.read(path)
    if texts.get("format") != FORMAT or "structure" not in texts:
        raise ValueError(f"{path} holds no network that dwsep separated")
    try:
        restructure_(model, json.loads(texts["structure"]))
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
    return texts
