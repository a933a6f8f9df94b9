"""Settings: checked, named in errors, and fixed once made."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import ValidationError

from dwsep.training.config import TrainConfig, make_config, read_yaml
from dwsep.training.recipes import DEFAULTS, DEMO


def test_train_config_cannot_be_changed():
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("recipe", [DEFAULTS, DEMO])
def test_train_config_takes_the_recipes(recipe):
    config = TrainConfig(**recipe)
    assert {name: getattr(config, name) for name in recipe} == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -1),
        ("optimizer", "adam"),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
        ("warmup_epochs", -1),
        ("label_smoothing", 1),
        ("seed", -1),
        ("seed", 2**32),
        ("precision", "float16"),
        ("memory_format", "nhwc"),
        ("data", "mnist"),
        ("image_size", 0),
        ("in_channels", 2),
        ("augment", "perhaps"),
        ("network_options", 3),
        ("width", 0.5),
    ],
)
def test_train_config_names_the_field(field, value):
    with pytest.raises(ValidationError) as caught:
        TrainConfig(**{field: value})
    assert [error["loc"][0] for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs must be less than epochs, got 2.0 and 2"),
        ({"data": "folder"}, "data='folder' needs data_dir"),
        ({"data_dir": "x"}, "'fashion-mnist-subset' comes with the package and takes no data_dir"),
    ],
)
def test_train_config_checks_settings_together(values, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**values)


def test_differences_lists_what_changes_a_run():
    config = TrainConfig(epochs=3, output_dir="a")
    assert config.differences(TrainConfig(epochs=3, output_dir="b")) == []
    assert config.differences(TrainConfig(epochs=4, seed=2)) == ["epochs: 3, not 4", "seed: 0, not 2"]


def test_train_config_survives_json():
    config = TrainConfig(network_options={"width_multiplier": 0.5}, data="folder", data_dir="x", output_dir="y")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "audio"}, "task: unknown name 'audio'; valid names are 'classify', 'segment', 'text', 'series'"),
        ({"task": "segment"}, "data\n.*Field required"),
        ({"task": "text", "data": "x", "network": "mobilenet_v1"}, "network 'mobilenet_v1' is for the task 'classify'"),
        ({"accumulate": 3}, "batch_size must be a multiple of accumulate, got 64 and 3"),
        ({"ema_decay": 1.0}, "ema_decay\n.*less than 1"),
        ({"class_weights": [1, -1]}, "class_weights"),
        ({"tensorboard": True}, "tensorboard needs output_dir"),
        ({"task": "series", "data": "x", "image_size": 3}, "image_size\n.*not permitted"),
        ({"task": "text", "data": "x", "test_fraction": 1}, "test_fraction\n.*less than 1"),
    ],
)
def test_make_config_names_the_field(values, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        make_config(values)


def test_make_config_is_that_of_the_task():
    assert type(make_config({})) is TrainConfig
    config = make_config({"task": "segment", "data": "x", "image_size": [96, 128]})
    assert (config.network, config.image_size) == ("deeplab_v3_plus", (96, 128))
    assert make_config(json.loads(config.model_dump_json())) == config


def test_where_files_lie_makes_no_difference():
    one = make_config({"task": "text", "data": "a.csv", "test_data": "b.csv"})
    assert one.differences(make_config({"task": "text", "data": "c.csv", "output_dir": "x"})) == []
    assert one.differences(make_config({"task": "text", "data": "a.csv", "min_count": 3})) == ["min_count: 2, not 3"]


def test_read_yaml_reads_settings_and_names_what_is_wrong(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = tmp_path / "a.yaml"
    path.write_text("task: series\ndata: x\nnetwork_options:\n  dilations: [1, 2]\n")
    assert make_config(read_yaml(path)).network_options == {"dilations": [1, 2]}
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"a\.yaml must be a mapping from setting to value, got list"):
        read_yaml(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"a\.yaml is no YAML"):
        read_yaml(path)


def test_a_run_no_longer_than_the_usual_warm_up_warms_up_for_half_of_it():
    assert make_config({"task": "segment", "data": "x", "epochs": 1}).warmup_epochs == 0.5
    assert make_config({"task": "series", "data": "x", "epochs": 2}).warmup_epochs == 1
    assert make_config({"task": "series", "data": "x", "epochs": 3}).warmup_epochs == 2
    with pytest.raises(ValidationError, match=r"warmup_epochs must be less than epochs, got 1\.0 and 1"):
        make_config({"task": "segment", "data": "x", "epochs": 1, "warmup_epochs": 1})
