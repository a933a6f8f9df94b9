"""From settings to data and network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.networks._weights import ModelInfo, read_model
from dwsep.training.config import SegmentConfig, SeriesConfig, Settings, TextConfig, TrainConfig
from dwsep.training.data import (
    Examples,
    ImageDataset,
    Vocabulary,
    load_fashion_mnist_subset,
    load_hub_images,
    load_idx,
    load_image_folder,
    load_mask_folder,
    load_series,
    load_text,
)
from dwsep.training.data.idx import DEBIAN_FOLDER
from dwsep.training.recipes import default_network_options
from dwsep.training.seeding import seed_everything

_SEGMENTATION_WIDTH = 0.5


def load_data(config: Settings, split: str, info: ModelInfo | None = None) -> Examples:
    """Load one split of the data that the settings name.

    Args:
        config: Names the data.
        split: "train" or "test"; "val", too, for images with masks, which training evaluates on in place of "test".
        info: Of a trained network that the data is for, whose vocabulary and classes it then has.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or split is unknown.
        ImportError: If the data has images and Pillow is not installed.
    """
    if isinstance(config, SegmentConfig):
        return load_mask_folder(
            config.data,
            split,
            image_size=config.image_size,
            in_channels=config.in_channels,
            ignore_index=config.ignore_index,
            on_bad_file=config.on_bad_file,
        )
    if isinstance(config, TextConfig):
        given: dict[str, Any] = {}
        if info is not None:
            given = {"vocabulary": Vocabulary(tuple(info.extra["vocabulary"])), "class_names": info.class_names}
        return load_text(
            config.data,
            split,
            test_path=config.test_data,
            test_fraction=config.test_fraction,
            seed=config.seed,
            text_column=config.text_column,
            label_column=config.label_column,
            encoding=config.encoding,
            max_length=config.max_length,
            min_count=config.min_count,
            **given,
        )
    if isinstance(config, SeriesConfig):
        return load_series(
            config.data,
            split,
            test_path=config.test_data,
            test_fraction=config.test_fraction,
            seed=config.seed,
            class_names=None if info is None else info.class_names,
        )
    assert isinstance(config, TrainConfig)
    return replace(_load_images(config, split), augmentation=config.augmentation)


def _load_images(config: TrainConfig, split: str) -> ImageDataset:
    if config.data == "folder":
        assert config.data_dir is not None  # TrainConfig sees to it
        return load_image_folder(
            config.data_dir,
            split,
            image_size=config.image_size,
            in_channels=config.in_channels,
            seed=config.seed,
            on_bad_file=config.on_bad_file,
        )
    if config.data == "huggingface":
        return load_hub_images(
            f"hf:{config.data_dir}",
            split,
            image_size=config.image_size,
            in_channels=config.in_channels,
            label_column=config.label_column,
            seed=config.seed,
            on_bad_file=config.on_bad_file,
        )
    if config.data == "fashion-mnist":
        return load_idx(config.data_dir or DEBIAN_FOLDER, split)
    return load_fashion_mnist_subset(split)


def complete_options(config: Settings, data: Examples) -> Settings:
    """Fill in the network's options that the settings leave open and the data, or what trains well, decides.

    Args:
        config: The settings.
        data: The training data.

    Returns:
        The settings with these options; where training starts from a file, with the network and the options of that.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or of another task, classes, input, network or options.
    """
    if config.start_from is not None:
        return _options_of_file(config, config.start_from, data)
    known = networks.option_names(config.network)
    filled: dict[str, Any] = {}
    if isinstance(data, ImageDataset):
        filled = default_network_options(data.image_size)
    elif config.task == "segment":
        filled = {"width_multiplier": _SEGMENTATION_WIDTH}
    options = {**filled, **data.network_options(), **config.network_options}
    return config.model_copy(
        update={"network_options": {n: v for n, v in options.items() if n in known or n not in filled}}
    )


def _options_of_file(config: Settings, path: Path, data: Examples) -> Settings:
    _, info = read_model(path)
    described = data.describe()
    pairs: list[tuple[str, Any, Any]] = [
        ("the task", info.task, config.task),
        ("the classes", info.class_names, data.class_names),
        ("channels", info.in_channels, described.get("in_channels", 0)),
        ("the vocabulary", info.extra.get("vocabulary"), described.get("extra", {}).get("vocabulary")),
    ]
    if config.network != config.recipe["network"]:  # which is what it is where none was asked for
        pairs.append(("the network", info.network, config.network))
    pairs += [(f"the option {name}", info.options.get(name), value) for name, value in config.network_options.items()]
    for what, their, own in pairs:
        if their != own:
            shown = "another" if what == "the vocabulary" else f"{their!r}, not {own!r}"
            raise ValueError(f"start_from {path} holds a network with {what} {shown}")
    return config.model_copy(update={"network": info.network, "network_options": dict(info.options)})


def build_model(config: Settings, data: Examples, checkpoint: Path | None = None) -> nn.Module:
    """Create the network that the settings name, for the classes and channels of the data.

    Args:
        config: Names the network, its options and the seed.
        data: Data of the kind that it is to be trained on.
        checkpoint: Of the run that goes on: the file that training started from is not needed again.

    Returns:
        The network with the weights that training starts from, else with random ones that depend on the seed alone,
        accelerated unless the settings say no; the
        global generators are left seeded.

    Raises:
        ValueError: If the network is unknown or an option is out of range.
        TypeError: If the network has no such option.
    """
    seed_everything(config.seed)
    channels = {key: value for key, value in data.describe().items() if key == "in_channels"}
    options = {**data.network_options(), **config.network_options}
    if config.start_from is not None:
        model = networks.load_model(checkpoint or config.start_from)
    else:
        model = networks.create(config.network, num_classes=data.num_classes, **channels, **options)
    if config.accelerate:
        accelerate_(model)
    return model
