"""Models in folders and on the hub, which no test asks over a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import dwsep
from dwsep.networks import _safetensors

BLOCK = {"in_channels": 8, "out_channels": 8, "expansion": 2, "squeeze_channels": 4}


@pytest.fixture
def block():
    made = dwsep.nn.InvertedResidual(**BLOCK)
    made.project_norm.running_mean.normal_()
    return made


def equal(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_layer_comes_back_bit_for_bit(block, tmp_path):
    folder = dwsep.weights.save_pretrained(block, tmp_path / "new" / "block", name="InvertedResidual", arguments=BLOCK)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = dwsep.weights.from_pretrained(folder)
    assert type(again) is dwsep.nn.InvertedResidual
    assert equal(block, again)
    assert not again.training
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(again(x), block.eval()(x))


def test_network_comes_back_with_what_else_was_said(tmp_path):
    arguments = {"num_classes": 5, "in_channels": 1, "width_multiplier": 0.125, "stem": "small"}
    network = dwsep.networks.create("mobilenet_v1", **arguments)
    dwsep.weights.save_pretrained(network, tmp_path, name="mobilenet_v1", arguments=arguments, extra={"classes": ["a"]})
    assert equal(network, dwsep.weights.from_pretrained(str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == ["a"]


def test_dtype_comes_back(tmp_path):
    layer = dwsep.nn.DepthwiseSeparableConv1d(4, 6, norm="batch").bfloat16()
    dwsep.weights.save_pretrained(
        layer,
        tmp_path,
        name="DepthwiseSeparableConv1d",
        arguments={"in_channels": 4, "out_channels": 6, "norm": "batch"},
    )
    assert equal(layer, dwsep.weights.from_pretrained(tmp_path))
    assert dwsep.weights.from_pretrained(tmp_path).depthwise.weight.dtype == torch.bfloat16


def test_interrupted_write_leaves_the_model_before(block, tmp_path, monkeypatch):
    dwsep.weights.save_pretrained(block, tmp_path, name="InvertedResidual", arguments=BLOCK)
    before = dwsep.weights.from_pretrained(tmp_path)

    def fail(*arguments):
        raise OSError("power cut")

    with torch.no_grad():
        block.project.weight.mul_(2)
    monkeypatch.setattr(_safetensors.os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        dwsep.weights.save_pretrained(block, tmp_path, name="InvertedResidual", arguments=BLOCK)
    monkeypatch.undo()
    assert equal(before, dwsep.weights.from_pretrained(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("change, error, message", [
    ({"name": "Unknown"}, dwsep.ArgumentError, "unknown name 'Unknown'; valid names are 'deeplab_v3_plus'"),
    ({"arguments": {**BLOCK, "expansion": 3}}, dwsep.ArgumentError, "do not build this model"),
    ({"arguments": {"in_channels": 8}}, TypeError, "out_channels"),
    ({"arguments": {**BLOCK, "norm": torch.nn.BatchNorm2d}}, TypeError, "JSON"),
])  # fmt: skip
def test_save_refuses_what_would_not_come_back(block, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        dwsep.weights.save_pretrained(block, tmp_path, **{"name": "InvertedResidual", "arguments": BLOCK, **change})
    assert not list(tmp_path.iterdir())


def test_load_refuses_damaged_folders(block, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        dwsep.weights.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        dwsep.weights.from_pretrained(tmp_path)
    dwsep.weights.save_pretrained(block, tmp_path, name="InvertedResidual", arguments=BLOCK)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(ValueError, match="truncated, damaged"):
        dwsep.weights.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "InvertedResidual"}')
    with pytest.raises(dwsep.ArgumentError, match="does not describe a model of dwsep"):
        dwsep.weights.from_pretrained(tmp_path)


def test_push_to_hub_uploads_what_from_pretrained_reads(block, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub's client is an extra")
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            for name in os.listdir(folder_path):
                with open(os.path.join(folder_path, name), "rb") as file:
                    (tmp_path / name).write_bytes(file.read())
            calls.append(("upload", repo_id, commit_message))
            return "https://hub/commit"

    def snapshot_download(repo_id, **options):
        calls.append(("download", repo_id, options["revision"], options["local_files_only"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    address = dwsep.weights.push_to_hub(
        block, "me/block", name="InvertedResidual", arguments=BLOCK, private=True, token="secret"
    )
    assert address == "https://hub/commit"
    assert equal(block, dwsep.weights.from_pretrained("me/block", revision="v1", local_files_only=True))
    assert calls == [
        ("token", "secret"),
        ("create", "me/block", True, True),
        ("upload", "me/block", "Upload a model of dwsep"),
        ("download", "me/block", "v1", True),
    ]


def test_hub_methods_fit_the_installed_client():
    """The calls above are replaced: their names and arguments exist."""
    import inspect

    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub's client is an extra")
    for function, names in (
        (huggingface_hub.HfApi.create_repo, ("repo_id", "private", "exist_ok")),
        (huggingface_hub.HfApi.upload_folder, ("repo_id", "folder_path", "commit_message")),
        (huggingface_hub.snapshot_download, ("revision", "cache_dir", "token", "local_files_only", "allow_patterns")),
    ):
        assert set(names) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("package, call, extra", [
    ("huggingface_hub", "dwsep.weights.from_pretrained('me/model')", "dwsep[hub]"),
    ("h5py", "dwsep.weights.read('model.h5')", "dwsep[keras]"),
])  # fmt: skip
def test_missing_packages_name_their_extra(package, call, extra, tmp_path):
    (tmp_path / "model.h5").write_bytes(b"")
    script = f"import sys; sys.modules[{package!r}] = None\nimport dwsep\n{call}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert "ImportError: " in result.stderr
    assert f'pip install "{extra}"' in result.stderr
