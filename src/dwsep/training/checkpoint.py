"""Training checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.networks import _safetensors
from dwsep.networks._weights import MODEL_PREFIX, ModelInfo, load_state
from dwsep.training.config import Settings, make_config
from dwsep.training.seeding import capture_rng, restore_rng

FORMAT = "dwsep-training-checkpoint"
VERSION = 1
_OPTIMIZER_PREFIX = "optimizer."


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Args:
        epoch: Number of the epoch, from 1.
        train_loss: Mean training loss over the epoch.
        learning_rate: Learning rate of the epoch's last step.
        test_loss: Mean cross-entropy on the test data after the epoch, in nats.
        test_accuracy: Accuracy on the test data after the epoch, 0 to 1.
        seconds: Time of the training steps; evaluation and checkpoints are not counted.
        images_per_second: Training examples per second of that time.
        metrics: What else the test data gave: macro_f1, or mean_iou and class_iou by class.
    """

    epoch: int
    train_loss: float
    learning_rate: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """What epochs are compared by, higher is better: mean intersection over union of masks, accuracy of labels."""
        return self.metrics.get("mean_iou", self.test_accuracy)


@dataclass
class TrainState:
    """Where a run stands.

    Args:
        epoch: Finished epochs.
        batch: Finished batches of the epoch after those.
        loss_sum: Sum of their losses.
        seconds: Time that they took.
        data_digest: Fingerprint of the training data.
        history: Records of the finished epochs.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    data_digest: str = ""
    history: list[EpochRecord] = field(default_factory=list)


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    config: Settings,
    info: ModelInfo,
    copies: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: The file; one that exists is replaced.
        model: The network.
        optimizer: Its optimiser.
        state: Where the run stands.
        config: The settings of the run.
        info: How to build the network, and the data's normalisation.
        copies: Other weights of the network by name: "average", "best".

    Raises:
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.
    """
    rng_tensors, rng_rest = capture_rng()
    tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER_PREFIX}{index}.{name}"] = value
    for kind, weights in (copies or {}).items():
        tensors.update({f"{kind}.{name}": tensor for name, tensor in weights.items()})
    tensors.update(rng_tensors)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": info.to_json(),
        "config": config.model_dump_json(),
        "state": json.dumps(asdict(state)),
        "rng": rng_rest,
    }
    _safetensors.write(path, tensors, metadata)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Args:
        path: Where it was read from.
        config: The settings of the run.
        info: How to build the network, and the data's normalisation.
        state: Where the run stands.
        tensors: Weights, optimiser state and generator states.
        rng: What the generators keep beside their tensors.
    """

    path: str
    config: Settings
    info: ModelInfo
    state: TrainState
    tensors: dict[str, Tensor]
    rng: str

    def copy_of(self, kind: str) -> dict[str, Tensor]:
        """Other weights of the network that were saved under a name; empty if none were."""
        prefix = f"{kind}."
        return {n.removeprefix(prefix): tensor for n, tensor in self.tensors.items() if n.startswith(prefix)}

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put model, optimiser and the global random number generators where the run left them.

        Args:
            model: The network, built as the run built it.
            optimizer: Its optimiser, made as the run made it.

        Raises:
            ValueError: If the weights or the optimiser state do not fit; nothing is changed then.
        """
        optimizer_state = self._optimizer_state(optimizer)
        weights = {
            name.removeprefix(MODEL_PREFIX): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(MODEL_PREFIX)
        }
        load_state(model, weights, self.path)
        optimizer.load_state_dict({"state": optimizer_state, "param_groups": optimizer.state_dict()["param_groups"]})
        restore_rng(self.tensors, self.rng)

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found: dict[int, dict[str, Any]] = {}
        for key, value in self.tensors.items():
            if not key.startswith(_OPTIMIZER_PREFIX):
                continue
            number, _, name = key.removeprefix(_OPTIMIZER_PREFIX).partition(".")
            index = int(number) if number.isdecimal() else len(parameters)
            if index >= len(parameters) or (value.dim() > 0 and value.shape != parameters[index].shape):
                raise ValueError(f"{self.path}: {key} of shape {tuple(value.shape)} does not fit the optimiser")
            if value.shape == parameters[index].shape:
                # The strides must be the parameter's too: element order decides which elements a vectorised update
                # takes and which its scalar tail takes, and the two may round differently.
                value = torch.empty_like(parameters[index], dtype=value.dtype).copy_(value)
            found.setdefault(index, {})[name] = value
        if found and len(found) != len(parameters):
            raise ValueError(f"{self.path} has optimiser state for {len(found)} of {len(parameters)} parameters")
        return found


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a training checkpoint.

    Args:
        path: A file written by :func:`save`.

    Returns:
        The checkpoint; :meth:`Checkpoint.restore` applies it.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged, or not a training checkpoint of this version.
    """
    tensors, metadata = _safetensors.read(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a training checkpoint of dwsep")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path} has checkpoint version {metadata.get('version')}, this dwsep reads {VERSION}")
    try:
        values = json.loads(metadata["state"])
        values["history"] = [EpochRecord(**record) for record in values["history"]]
        return Checkpoint(
            path=str(path),
            config=make_config(json.loads(metadata["config"])),
            info=ModelInfo.from_json(metadata["model"]),
            state=TrainState(**values),
            tensors=tensors,
            rng=metadata["rng"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged checkpoint metadata ({error})") from error
