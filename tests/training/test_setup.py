"""Settings find their data and their network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dwsep import networks
from dwsep.networks._weights import ModelInfo, save_model
from dwsep.nn._separated import restructure_, structure_of
from dwsep.training.config import TrainConfig
from dwsep.training.data import encode_idx
from dwsep.training.setup import build_model, complete_options, load_data
from tests.training.toys import make_data


def test_load_data_finds_the_subset():
    assert load_data(TrainConfig(), "test").images.shape == (2000, 1, 28, 28)


def test_load_data_finds_idx_files(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(encode_idx(torch.zeros(2, 4, 4, dtype=torch.uint8)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(encode_idx(torch.zeros(2, dtype=torch.uint8)))
    data = load_data(TrainConfig(data="fashion-mnist", data_dir=tmp_path), "train")
    assert data.images.shape == (2, 1, 4, 4)


def test_load_data_finds_a_folder_of_images(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (tmp_path / "a").mkdir()
    for name in "xyz":
        Image.new("L", (9, 9), 50).save(tmp_path / "a" / f"{name}.png")
    config = TrainConfig(data="folder", data_dir=tmp_path, image_size=6, in_channels=1)
    assert load_data(config, "train").images.shape == (2, 1, 6, 6)


def test_build_model_depends_on_the_seed_alone():
    models = []
    for seed in (0, 0, 1):
        torch.rand(5)
        config = TrainConfig(network_options={"width_multiplier": 0.125, "stem": "small"}, seed=seed)
        models.append(build_model(config, make_data(3)).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])
    assert models[0]["classifier.weight"].shape[0] == 3


@pytest.fixture
def saved(tmp_path):
    """A small dense network, one layer of which was separated."""
    options = {"width_multiplier": 0.125, "stem": "small"}
    model = networks.create("mobilenet_v1_dense", num_classes=3, in_channels=1, **options)
    restructure_(model, {"blocks.1.conv": {"order": "depthwise_first", "rank": 2, "bias": False}})
    data = make_data(3)
    info = ModelInfo("mobilenet_v1_dense", 3, 1, options, data.class_names, structure=structure_of(model))
    save_model(tmp_path / "start.safetensors", model, info)
    return tmp_path / "start.safetensors", model, data


def test_training_starts_from_a_file(saved, tmp_path):
    path, model, data = saved
    config = complete_options(TrainConfig(start_from=path, network_options={"stem": "small"}), data)
    assert config.network == "mobilenet_v1_dense"
    assert config.network_options == {"width_multiplier": 0.125, "stem": "small"}
    built = build_model(config, data)
    assert structure_of(built) == structure_of(model)
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in model.state_dict().items())
    kept = path.rename(tmp_path / "checkpoint.safetensors")
    assert structure_of(build_model(config, data, kept)) == structure_of(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"network": "mobilenet_v2"}, "holds a network with the network 'mobilenet_v1_dense', not 'mobilenet_v2'"),
        ({"network_options": {"stem": "imagenet"}}, "with the option stem 'small', not 'imagenet'"),
        ({"network_options": {"residual": True}}, "with the option residual None, not True"),
    ],
)
def test_a_file_of_another_network_is_no_start(saved, options, message):
    path, _, data = saved
    with pytest.raises(ValueError, match=message):
        complete_options(TrainConfig(start_from=path, **options), data)


def test_a_file_of_other_data_is_no_start(saved):
    path, _, data = saved
    other = dataclasses.replace(data, class_names=("x", "y", "z"))
    with pytest.raises(ValueError, match=r"start_from .* with the classes \('top', .*\), not \('x', 'y', 'z'\)"):
        complete_options(TrainConfig(start_from=path), other)
