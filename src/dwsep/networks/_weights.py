"""Model files: a network's weights with what is needed to build and use it again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from dwsep.networks import _safetensors

FORMAT = "dwsep-model"
MODEL_PREFIX = "model."


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of its network.

    Args:
        network: Name of the network.
        options: The options that it was created with.
        num_classes: Number of logits.
        in_channels: Image channels, or values per time step.
        class_names: One name per class, or empty if unknown.
        mean: Mean of each channel, of images on the scale 0 to 1.
        std: Standard deviation of each channel on that scale.
        image_size: Height and width in pixels of the images it was trained on.
        epochs: Finished epochs of training.
        task: "classify", "segment", "text" or "series".
        extra: What else a task needs to use the network: a vocabulary, colours of masks.
        structure: The layers that ``dwsep.separate_`` changed, by name; see
            :func:`dwsep.nn._separated.structure_of`.
    """

    network: str
    num_classes: int
    in_channels: int
    options: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    epochs: int = 0
    task: str = "classify"
    extra: dict[str, Any] = field(default_factory=dict)
    structure: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Encode as JSON, for a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Decode what :meth:`to_json` wrote."""
        values = json.loads(text)
        for name in ("class_names", "mean", "std", "image_size"):
            values[name] = tuple(values[name])
        return cls(**values)


def save_model(path: str | os.PathLike[str], model: nn.Module, info: ModelInfo) -> None:
    """Write a model file, atomically.

    Args:
        path: The file; one that exists is replaced.
        model: The network.
        info: How to build it and what it was trained on.

    Raises:
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.
    """
    _safetensors.write(path, dict(model.state_dict()), {"format": FORMAT, "model": info.to_json()})


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], ModelInfo]:
    """Read the weights from a model file or from a training checkpoint.

    Args:
        path: A file written by :func:`save_model` or by training.

    Returns:
        The state dict and the information beside it.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or not one of ours.
    """
    tensors, metadata = _safetensors.read(path)
    try:
        info = ModelInfo.from_json(metadata["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of dwsep: its metadata does not describe a network") from error
    if metadata.get("format") != FORMAT:
        tensors = {
            name.removeprefix(MODEL_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(MODEL_PREFIX)
        }
    return tensors, info


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load a state dict strictly, or say in one message what does not fit.

    Args:
        model: The network.
        state: Its weights.
        path: Where they come from, for the message.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape; the model is then unchanged.
    """
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own.keys() - state.keys()]
    faults += [f"{name} is unexpected" for name in state.keys() - own.keys()]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, the network needs {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{path} does not fit the network: {shown}{more}")
    model.load_state_dict(state)
