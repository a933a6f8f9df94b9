"""Settings: checked, named in errors, and fixed once made."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dwsep.training.config import TrainConfig
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
