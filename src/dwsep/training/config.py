"""The settings of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dwsep import networks
from dwsep.training.data.files import read_file
from dwsep.training.recipes import BY_TASK

try:
    from pydantic import BaseModel, ConfigDict, Field, model_validator
except ImportError as error:
    raise ImportError('training needs pydantic; install it with: pip install "dwsep[train]"') from error

DataName = Literal["fashion-mnist-subset", "fashion-mnist", "folder", "huggingface"]
Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["channels_last", "contiguous"]
OptimizerName = Literal["adamw", "sgd"]
TaskName = Literal["classify", "segment", "text", "series"]
OnBadFile = Literal["stop", "skip"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
TestFraction = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseModel):
    """What the settings of every task have; cannot be changed once made.

    What has no default here has one by task, in :data:`dwsep.training.recipes.BY_TASK`.

    Args:
        network: Name of the network.
        network_options: Its options, such as width_multiplier and stem.
        epochs: Passes over the training data.
        batch_size: Examples per step, of all processes together.
        accumulate: Parts that a step's batch is cut into, one after the other, to spare memory; batch norms see a part.
        optimizer: "adamw" or "sgd" (momentum 0.9, Nesterov).
        learning_rate: Highest learning rate, reached after the warm-up.
        weight_decay: Decay of dense and pointwise weights; norms, biases and depthwise kernels are not decayed.
        warmup_epochs: Length of the linear warm-up in epochs; fractions are allowed. Half of epochs, where the task's
            own would be no less than those.
        label_smoothing: Share of the target spread over all classes.
        class_weights: "balanced" weighs classes by the inverse of their frequency in the training data; or one
            positive weight per class; None weighs them all alike.
        clip_norm: Norm which the gradient of all weights together is scaled down to; None for no limit.
        ema_decay: Share of itself that a moving average of the weights keeps at every step; the average is what is
            evaluated and saved. None for none.
        early_stopping: Epochs without a better score after which training ends with the best epoch's weights. The data
            which that score is of then chooses the epoch, and flatters: evaluate on other data. None for never.
        start_from: Model file whose network and weights to start from, separated or not, in place of random weights;
            None for these.
        teacher: Model file of a network whose predictions are learnt beside the labels; trained on the same classes
            and input.
        distill_weight: Share of the loss that goes by the teacher.
        distill_temperature: Divides both networks' logits there.
        augment: Whether to change inputs at random.
        seed: Of initialisation, order and augmentation.
        precision: "float32", or "bfloat16" for autocast.
        memory_format: "channels_last" or "contiguous", of images.
        accelerate: Whether to train the network accelerated.
        checkpoint_seconds: Time after which an epoch is saved on the way.
        tensorboard: Whether to write scalars for TensorBoard, too.
        output_dir: Folder for checkpoint, model and log; None writes nothing.

    Raises:
        pydantic.ValidationError: (a ValueError) naming each field that is unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    # What a task's settings are where nothing is said.
    recipe: ClassVar[dict[str, Any]] = {}

    task: TaskName
    network: str
    network_options: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: OptimizerName
    learning_rate: Positive
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    warmup_epochs: float = Field(ge=0, allow_inf_nan=False)
    label_smoothing: Share
    class_weights: Literal["balanced"] | tuple[Positive, ...] | None = None
    clip_norm: Positive | None = None
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    early_stopping: int | None = Field(default=None, ge=1)
    start_from: Path | None = None
    teacher: Path | None = None
    distill_weight: float = Field(default=0.5, gt=0, le=1)
    distill_temperature: Positive = 2.0
    augment: bool
    # numpy's generator takes 32 bits.
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "float32"
    memory_format: MemoryFormat = "channels_last"
    accelerate: bool = True
    checkpoint_seconds: Positive = 120.0
    tensorboard: bool = False
    output_dir: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = {**cls.recipe, **values}
        epochs = filled.get("epochs")
        # A run no longer than the usual warm-up warms up for half of it.
        if "warmup_epochs" not in values and isinstance(epochs, int) and 0 < epochs <= filled["warmup_epochs"]:
            filled["warmup_epochs"] = epochs / 2
        return filled

    @model_validator(mode="after")
    def _check_settings(self) -> Settings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs, got {self.warmup_epochs} and {self.epochs}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}"
            )
        if self.tensorboard and self.output_dir is None:
            raise ValueError("tensorboard needs output_dir")
        if self.network in networks.names() and networks.task_of(self.network) != self.task:
            raise ValueError(
                f"network {self.network!r} is for the task {networks.task_of(self.network)!r}, not {self.task!r}; "
                f"networks for it are {', '.join(networks.names(self.task))}"
            )
        return self

    def differences(self, other: Settings) -> list[str]:
        """List the settings in which a run would go another way, where its files lie left aside.

        Args:
            other: Settings to compare with.

        Returns:
            One text per difference, "field: ours, not theirs".
        """
        # What says where files lie, or how often they are written, decides nothing.
        places = {"output_dir", "data_dir", "test_data", "start_from", "teacher", "checkpoint_seconds", "tensorboard"}
        if self.task != "classify":
            places.add("data")
        return [
            f"{name}: {getattr(self, name)!r}, not {getattr(other, name)!r}"
            for name in type(self).model_fields
            if name not in places and hasattr(other, name) and getattr(self, name) != getattr(other, name)
        ]


class TrainConfig(Settings):
    """The settings of a run that classifies images; beside those of :class:`Settings`:

    Args:
        data: "fashion-mnist-subset" (comes with the package), "fashion-mnist" (IDX files in data_dir), "folder"
            (images in data_dir, one sub-folder per class) or "huggingface" (data_dir is a name on the hub, or a folder
            that its library saved).
        data_dir: Folder of the data. For "fashion-mnist" it defaults to where Debian's package puts them.
        image_size: Height and width in pixels that images of a folder or of the hub are brought to.
        in_channels: 1 or 3, for images of a folder or of the hub.
        label_column: Name of the labels' column, for images of the hub.
        augmentation: What augment does: "shift", by up to two pixels, and mirroring, for small images; or "crop", of
            random size and place, with mirroring, colours and erasing, for photos; needs torchvision.
        on_bad_file: "stop" at an image that cannot be read, or "skip" it.

    Example:
        >>> TrainConfig(**{"epochs": 3}).batch_size
        64
    """

    recipe = BY_TASK["classify"]
    task: Literal["classify"] = "classify"
    data: DataName = "fashion-mnist-subset"
    data_dir: Path | None = None
    image_size: int = Field(default=32, ge=1)
    in_channels: Literal[1, 3] = 3
    label_column: str = "label"
    augmentation: Literal["shift", "crop"] = "shift"
    on_bad_file: OnBadFile = "stop"

    @model_validator(mode="after")
    def _check_data(self) -> TrainConfig:
        if self.data in ("folder", "huggingface") and self.data_dir is None:
            raise ValueError(f"data={self.data!r} needs data_dir")
        if self.data == "fashion-mnist-subset" and self.data_dir is not None:
            raise ValueError("data='fashion-mnist-subset' comes with the package and takes no data_dir")
        return self


class SegmentConfig(Settings):
    """The settings of a run that gives every pixel a class; beside those of :class:`Settings`:

    Args:
        data: Folder of images and masks; see :func:`dwsep.training.data.load_mask_folder`.
        image_size: Height and width in pixels that images and masks are brought to; None to take them as they are.
        in_channels: 1 or 3.
        ignore_index: Mask value of pixels that do not count.
        on_bad_file: "stop" at an image or a mask that cannot be read, or "skip" both.
    """

    recipe = BY_TASK["segment"]
    task: Literal["segment"] = "segment"
    data: Path
    image_size: int | tuple[int, int] | None = None
    in_channels: Literal[1, 3] = 3
    ignore_index: int = Field(default=255, ge=0, le=255)
    on_bad_file: OnBadFile = "stop"


class TextConfig(Settings):
    """The settings of a run that classifies texts; beside those of :class:`Settings`:

    Args:
        data: Table of the training texts, or of all; .csv, .tsv or .jsonl.
        test_data: Table of the test texts; None to divide ``data``.
        test_fraction: Share of each class that goes to the test split then.
        text_column: Name of the column, or key, of the texts.
        label_column: Name of the column, or key, of the labels.
        encoding: Of the files.
        max_length: Words of a text that are kept.
        min_count: Times that a word must occur in the training texts to be known.
    """

    recipe = BY_TASK["text"]
    task: Literal["text"] = "text"
    data: Path
    test_data: Path | None = None
    test_fraction: TestFraction = 0.2
    text_column: str = "text"
    label_column: str = "label"
    encoding: str = "utf-8"
    max_length: int = Field(default=256, ge=1)
    min_count: int = Field(default=2, ge=1)


class SeriesConfig(Settings):
    """The settings of a run that classifies series; beside those of :class:`Settings`:

    Args:
        data: .ts or .npz file of the training series, or a folder with such a pair; see
            :func:`dwsep.training.data.load_series`.
        test_data: File of the test series; None to find it beside ``data``, or to divide that.
        test_fraction: Share of each class that goes to the test split if ``data`` is divided.
    """

    recipe = BY_TASK["series"]
    task: Literal["series"] = "series"
    data: Path
    test_data: Path | None = None
    test_fraction: TestFraction = 0.2


CONFIGS: dict[str, type[Settings]] = {
    "classify": TrainConfig,
    "segment": SegmentConfig,
    "text": TextConfig,
    "series": SeriesConfig,
}


def make_config(values: dict[str, Any]) -> Settings:
    """Make the settings of the task that they name under "task"; those of a classifier of images if none.

    Args:
        values: Field to value.

    Returns:
        The settings.

    Raises:
        pydantic.ValidationError: (a ValueError) naming each field that is unknown or out of range.
        ValueError: If the task is unknown.
    """
    task = values.get("task", "classify")
    if task not in CONFIGS:
        raise ValueError(f"task: unknown name {task!r}; valid names are {', '.join(map(repr, CONFIGS))}")
    return CONFIGS[task].model_validate(values)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Args:
        path: The file: a mapping from field to value.

    Returns:
        The values, unchecked.

    Raises:
        ImportError: If PyYAML is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML or no mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('settings in YAML need PyYAML; install it with: pip install "dwsep[train]"') from error
    text = read_file(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping from setting to value, got {type(values).__name__}")
    return values
