"""Settings find their data and their network."""

from __future__ import annotations

import pytest
import torch

from dwsep.training.config import TrainConfig
from dwsep.training.data import encode_idx
from dwsep.training.setup import build_model, load_data
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
