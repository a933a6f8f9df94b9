"""Checkpoints: complete, never pickled, and refused when they do not fit."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn

from dwsep.networks import _safetensors
from dwsep.networks._weights import ModelInfo
from dwsep.training import checkpoint
from dwsep.training.checkpoint import EpochRecord, TrainState
from dwsep.training.optimisation import make_optimizer
from tests.training.toys import make_config, make_model

INFO = ModelInfo("toy", 3, 1, {"width_multiplier": 0.5}, ("a", "b", "c"), (0.5,), (0.25,), (8, 8), 1)
RECORD = EpochRecord(1, 0.5, 0.01, 0.4, 0.9, 1.5, 100.0)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()


@pytest.fixture(params=["adamw", "sgd"])
def saved(tmp_path, request):
    config = make_config(optimizer=request.param)
    model = make_model().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config)
    for _ in range(3):
        step(model, optimizer)
    path = tmp_path / "checkpoint.safetensors"
    state = TrainState(1, 2, 1.25, 0.5, "digest", [RECORD])
    checkpoint.save(path, model, optimizer, state, config, INFO)
    return path, model, optimizer, state, config


def test_load_gives_back_what_was_saved(saved):
    path, _, _, state, config = saved
    loaded = checkpoint.load(path)
    assert (loaded.state, loaded.config, loaded.info) == (state, config, INFO)


def test_restore_goes_on_bit_for_bit(saved):
    path, model, optimizer, _, config = saved
    for _ in range(2):
        step(model, optimizer)
    expected = torch.rand(2)
    other = make_model(seed=9).to(memory_format=torch.channels_last)
    other_optimizer = make_optimizer(other, config)
    checkpoint.load(path).restore(other, other_optimizer)
    for _ in range(2):
        step(other, other_optimizer)
    assert torch.equal(torch.rand(2), expected)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_save_pickles_nothing(saved):
    content = saved[0].read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    sizes = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert len(content) == 8 + length + max(sizes)
    assert json.loads(header["__metadata__"]["state"])["epoch"] == 1


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.9, 0.9999])
def test_load_refuses_a_truncated_file(saved, kept):
    path = saved[0]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is truncated, damaged or no safetensors file"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a training checkpoint of dwsep"),
        ({"version": "99"}, "has checkpoint version 99, this dwsep reads 1"),
        ({"config": "{}x"}, "damaged checkpoint metadata"),
        ({"config": '{"epochs": 0}'}, "damaged checkpoint metadata"),
        ({"state": "[]"}, "damaged checkpoint metadata"),
        ({"state": '{"history": [{"epoch": 1}]}'}, "damaged checkpoint metadata"),
        ({"model": "{}"}, "damaged checkpoint metadata"),
        ({"rng": None}, "damaged checkpoint metadata"),
    ],
)
def test_load_refuses_damaged_metadata(saved, changes, message):
    path = saved[0]
    tensors, metadata = _safetensors.read(path)
    metadata.update(changes)
    _safetensors.write(path, tensors, {name: text for name, text in metadata.items() if text is not None})
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path)


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        checkpoint.load(tmp_path / "nothing")


def test_restore_changes_nothing_when_the_model_does_not_fit(saved):
    path, _, _, _, config = saved
    loaded = checkpoint.load(path)
    model = make_model(seed=4)
    model[6] = nn.Linear(384, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit"):
        loaded.restore(model, make_optimizer(model, config))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_restore_refuses_an_optimiser_state_that_is_not_whole(saved):
    path, model, optimizer, _, _ = saved
    loaded = checkpoint.load(path)
    for name in [name for name in loaded.tensors if name.startswith("optimizer.2.")]:
        del loaded.tensors[name]
    with pytest.raises(ValueError, match=r"optimiser state for \d+ of \d+ parameters"):
        loaded.restore(model, optimizer)
