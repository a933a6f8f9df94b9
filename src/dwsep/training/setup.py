"""From settings to data and network."""

from __future__ import annotations

from torch import nn

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.training.config import TrainConfig
from dwsep.training.data import ImageDataset, load_fashion_mnist_subset, load_idx, load_image_folder
from dwsep.training.data.idx import DEBIAN_FOLDER
from dwsep.training.seeding import seed_everything


def load_data(config: TrainConfig, split: str) -> ImageDataset:
    """Load one split of the data that the settings name.

    Args:
        config: Names the data.
        split: "train" or "test".

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or split is unknown.
        ImportError: If the data is a folder of images and Pillow is not installed.
    """
    if config.data == "folder":
        assert config.data_dir is not None  # TrainConfig sees to it
        return load_image_folder(
            config.data_dir, split, image_size=config.image_size, in_channels=config.in_channels, seed=config.seed
        )
    if config.data == "fashion-mnist":
        return load_idx(config.data_dir or DEBIAN_FOLDER, split)
    return load_fashion_mnist_subset(split)


def build_model(config: TrainConfig, data: ImageDataset) -> nn.Module:
    """Create the network that the settings name, for the classes and channels of the data.

    Args:
        config: Names the network, its options and the seed.
        data: Data of the kind that it is to be trained on.

    Returns:
        The network with random weights that depend on the seed alone, accelerated; the global generators are left
        seeded.

    Raises:
        ValueError: If the network is unknown or an option is out of range.
        TypeError: If the network has no such option.
    """
    seed_everything(config.seed)
    model = networks.create(
        config.network, num_classes=data.num_classes, in_channels=data.in_channels, **config.network_options
    )
    accelerate_(model)
    return model
