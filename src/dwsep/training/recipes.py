"""Settings that train well, found by measuring."""

from __future__ import annotations

from typing import Any

# What `dwsep train` and TrainConfig start from.
DEFAULTS: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.05,
    "augment": False,
}

# The same for the other tasks.
SEGMENT: dict[str, Any] = {
    "network": "deeplab_v3_plus",
    "epochs": 30,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 1.0,
    "label_smoothing": 0.0,
    "augment": False,
}
TEXT: dict[str, Any] = {
    "network": "text_separable",
    "epochs": 8,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "augment": True,
}
SERIES: dict[str, Any] = {
    "network": "series_separable",
    "epochs": 100,
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 2.0,
    "label_smoothing": 0.05,
    "augment": True,
}
BY_TASK = {"classify": {"network": "mobilenet_v1", **DEFAULTS}, "segment": SEGMENT, "text": TEXT, "series": SERIES}

# What `dwsep demo` trains each of its networks with. Shortcuts help the separable network most: dense minus separable
# was 1.4, -0.1 and 1.1 points on the 2,000 test images with seeds 0, 1, 2 after 5 epochs, and 2.1 without shortcuts
# (seed 1). Seven epochs fit into five minutes on two cores, and left 0.4 to 1.2 points with seed 0.
DEMO: dict[str, Any] = {
    **DEFAULTS,
    "network_options": {"width_multiplier": 0.25, "stem": "small", "residual": True},
    "epochs": 7,
    "learning_rate": 0.2,
    "weight_decay": 1e-3,
    "warmup_epochs": 1.5,
}

_DEFAULT_WIDTH = 0.25
# Below this, the stem and the strides of the ImageNet network would leave a feature map of one pixel or two.
_SMALL_IMAGE = 64


def default_network_options(image_size: tuple[int, int]) -> dict[str, Any]:
    """Choose the options of a classifier of images by their size.

    Args:
        image_size: Height and width in pixels.

    Returns:
        Options for ``networks.create``.

    Example:
        >>> default_network_options((28, 28))
        {'width_multiplier': 0.25, 'stem': 'small'}
    """
    return {"width_multiplier": _DEFAULT_WIDTH, "stem": "small" if min(image_size) <= _SMALL_IMAGE else "imagenet"}
