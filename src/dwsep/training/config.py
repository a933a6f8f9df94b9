"""The settings of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dwsep.training.recipes import DEFAULTS

try:
    from pydantic import BaseModel, ConfigDict, Field, model_validator
except ImportError as error:
    raise ImportError('training needs pydantic; install it with: pip install "dwsep[train]"') from error

DataName = Literal["fashion-mnist-subset", "fashion-mnist", "folder"]
Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["channels_last", "contiguous"]
OptimizerName = Literal["adamw", "sgd"]


class TrainConfig(BaseModel):
    """The settings of a training run; cannot be changed once made.

    Args:
        network: Name of the network.
        network_options: Its options, such as width_multiplier and stem.
        data: "fashion-mnist-subset" (comes with the package), "fashion-mnist" (IDX files in data_dir) or "folder"
            (images in data_dir, one sub-folder per class).
        data_dir: Folder of the data. For "fashion-mnist" it defaults to where Debian's package puts them.
        image_size: Height and width in pixels that images of a folder are brought to.
        in_channels: 1 or 3, for images of a folder.
        epochs: Passes over the training data.
        batch_size: Images per step.
        optimizer: "adamw" or "sgd" (momentum 0.9, Nesterov).
        learning_rate: Highest learning rate, reached after the warm-up.
        weight_decay: Decay of dense and pointwise weights; norms, biases and depthwise kernels are not decayed.
        warmup_epochs: Length of the linear warm-up in epochs; fractions are allowed.
        label_smoothing: Share of the target spread over all classes.
        augment: Whether to shift by up to two pixels and mirror images at random.
        seed: Of initialisation, order and augmentation.
        precision: "float32", or "bfloat16" for autocast.
        memory_format: "channels_last" or "contiguous".
        output_dir: Folder for checkpoint, model and log; None writes nothing.

    Raises:
        pydantic.ValidationError: (a ValueError) naming each field that is unknown or out of range.

    Example:
        >>> TrainConfig(epochs=3).epochs
        3
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    network: str = "mobilenet_v1"
    network_options: dict[str, Any] = Field(default_factory=dict)
    data: DataName = "fashion-mnist-subset"
    data_dir: Path | None = None
    image_size: int = Field(default=32, ge=1)
    in_channels: Literal[1, 3] = 3
    epochs: int = Field(default=DEFAULTS["epochs"], ge=1)
    batch_size: int = Field(default=DEFAULTS["batch_size"], ge=1)
    optimizer: OptimizerName = DEFAULTS["optimizer"]
    learning_rate: float = Field(default=DEFAULTS["learning_rate"], gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=DEFAULTS["weight_decay"], ge=0, allow_inf_nan=False)
    warmup_epochs: float = Field(default=DEFAULTS["warmup_epochs"], ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=DEFAULTS["label_smoothing"], ge=0, lt=1)
    augment: bool = DEFAULTS["augment"]
    # numpy's generator takes 32 bits.
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "float32"
    memory_format: MemoryFormat = "channels_last"
    output_dir: Path | None = None

    @model_validator(mode="after")
    def _check_together(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs, got {self.warmup_epochs} and {self.epochs}")
        if self.data == "folder" and self.data_dir is None:
            raise ValueError("data='folder' needs data_dir")
        if self.data == "fashion-mnist-subset" and self.data_dir is not None:
            raise ValueError("data='fashion-mnist-subset' comes with the package and takes no data_dir")
        return self

    def differences(self, other: TrainConfig) -> list[str]:
        """List the settings in which a run would go another way, where its files lie left aside.

        Args:
            other: Settings to compare with.

        Returns:
            One text per difference, "field: ours, not theirs".
        """
        places = {"output_dir", "data_dir"}
        return [
            f"{name}: {getattr(self, name)!r}, not {getattr(other, name)!r}"
            for name in type(self).model_fields
            if name not in places and getattr(self, name) != getattr(other, name)
        ]
