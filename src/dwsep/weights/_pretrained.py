"""Models in folders and on the Hugging Face hub: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dwsep.nn as dnn
from dwsep import networks
from dwsep.errors import ArgumentError, unknown_name
from dwsep.networks import _safetensors
from dwsep.networks._weights import load_state

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "dwsep-pretrained"


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model into a folder, from which :func:`from_pretrained` builds it again.

    Each file appears complete or not at all; the weights come before the configuration that makes the folder a model.

    Args:
        model: a network of :func:`dwsep.networks.create`, or a layer or block of :mod:`dwsep.nn`.
        folder: made if missing; what it holds of a model is replaced.
        name: the network's name, such as ``"mobilenet_v1"``, or the layer's class, such as ``"InvertedResidual"``.
        arguments: what it was created with, as JSON can hold it, such as ``{"num_classes": 10}``.
        extra: anything else to keep in the configuration, such as class names.

    Returns:
        The folder.

    Raises:
        ArgumentError: (a ``ValueError``) ``name`` and ``arguments`` do not build a model of these tensors.
        TypeError: ``arguments`` are not for that network or layer, or JSON cannot hold them.
        ImportError: safetensors is not installed.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile, torch, dwsep
        >>> block = dwsep.nn.InvertedResidual(8, 8, expansion=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_pretrained(block, folder, name="InvertedResidual",
        ...                            arguments={"in_channels": 8, "out_channels": 8, "expansion": 2})
        ...     again = from_pretrained(path)
        >>> all(torch.equal(a, b) for a, b in zip(block.state_dict().values(), again.state_dict().values()))
        True
    """
    config = {"format": FORMAT, "name": name, "arguments": dict(arguments or {}), **dict(extra or {})}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    with torch.device("meta"):
        twin = _build(json.loads(text), "arguments").state_dict()
    state = dict(model.state_dict())
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if shapes != {key: tuple(value.shape) for key, value in twin.items()}:
        raise ArgumentError(f"name {name!r} and arguments {config['arguments']} do not build this model")
    folder = Path(folder)
    _safetensors.write(folder / WEIGHTS, state, {"format": "pt"})
    _safetensors.write_bytes(folder / CONFIG, text.encode())
    return folder


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Build the model of a folder, or of a repository on the Hugging Face hub, with its weights.

    Args:
        source: a folder which :func:`save_pretrained` wrote, or a repository such as ``"user/name"`` where there is no
            such folder. A folder needs no network and no other package than safetensors.
        revision: of the repository: branch, tag or commit.
        cache_dir: where the hub's files are kept.
        token: for a private repository.
        local_files_only: use the cache alone.

    Returns:
        The model, in evaluation mode, float32 unless it was saved otherwise.

    Raises:
        FileNotFoundError: the folder has no model in it.
        ArgumentError: (a ``ValueError``) the files are damaged, or not a model of ours.
        ImportError: safetensors is missing, or for a repository huggingface_hub.

    Example:
        See :func:`save_pretrained`.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
            raise FileNotFoundError(f"folder {folder} does not exist")
        folder = Path(
            _hub().snapshot_download(
                str(source),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, WEIGHTS],
            )
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no model: {name} is missing")
    try:
        config = json.loads((folder / CONFIG).read_text())
        assert config["format"] == FORMAT
        assert isinstance(config["arguments"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ArgumentError(f"{folder / CONFIG} does not describe a model of dwsep") from error
    tensors, _ = _safetensors.read(folder / WEIGHTS)
    model = _build(config, str(folder / CONFIG))
    for module_name, parameter in model.named_parameters():
        saved = tensors.get(module_name)
        if saved is not None and saved.dtype != parameter.dtype:
            parameter.data = parameter.data.to(saved.dtype)
    load_state(model, tensors, folder / WEIGHTS)
    return model.eval()


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a model of dwsep",
) -> str:
    """Upload a model to the Hugging Face hub, making the repository if there is none.

    Args:
        model: as :func:`save_pretrained` takes it, and so ``name``, ``arguments`` and ``extra``.
        repo_id: such as ``"user/name"``.
        name: the network's name or the layer's class.
        arguments: what it was created with.
        extra: anything else to keep in the configuration.
        private: whether a new repository is private.
        token: that may write; ``None`` for the one which is logged in.
        commit_message: of the upload.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
        ArgumentError: as :func:`save_pretrained`.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=name, arguments=arguments, extra=extra)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(getattr(commit, "commit_url", commit))


def _build(config: dict[str, Any], where: str) -> nn.Module:
    name, arguments = config["name"], config["arguments"]
    # A lazy layer has become another one by the time it has weights.
    layers = tuple(n for n in dnn.__all__ if isinstance(getattr(dnn, n), type) and not n.startswith("Lazy"))
    if name in networks.names():
        return networks.create(name, **arguments)
    if name in layers:
        return getattr(dnn, name)(**arguments)
    raise unknown_name(f"name in {where}", name, (*networks.names(), *layers))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('the hub needs huggingface_hub; install it with: pip install "dwsep[hub]"') from error
    return huggingface_hub
