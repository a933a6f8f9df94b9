"""The options of ``dwsep train``, each once: those of every task, and those of one.

A command's default is None, so that it can be told what stands on the command line: the settings of a YAML file come
next, and then those of :mod:`dwsep.training.recipes`, which the help shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from dwsep.training.recipes import BY_TASK


class Option(NamedTuple):
    """An option: the setting that it is for, its type, its help, and its flags where they are not made of the name."""

    field: str
    kind: Any
    help: str
    flags: tuple[str, ...] = ()
    default: str | None = None


# Settings of the network, which networks have or not.
NETWORK = (
    Option("width_multiplier", float, "Scales the channels of the network.", default="what trains well"),
    Option("dropout", float, "Probability of dropping a feature.", default="the network's"),
    Option("dense", bool, "Train the network's dense twin.", ("--dense/--separable",), "separable"),
)
NETWORK_OF = {
    "classify": (
        Option("stem", str, "imagenet or small.", default="small for images up to 64 pixels"),
        Option("residual", bool, "Add a block's input to its output.", ("--residual/--no-residual",), "no-residual"),
    ),
    "segment": (
        Option("encoder", str, "mobilenet_v2 or xception.", default="mobilenet_v2"),
        Option("output_stride", int, "16, or 8 for finer features at more than twice the cost.", default="16"),
        Option(
            "enlarge",
            int,
            "Times larger the network sees images; 2 for thin objects, at 4 times the cost.",
            default="1",
        ),
    ),
    "text": (),
    "series": (Option("kernel_size", int, "Taps of the convolutions, odd.", default="9"),),
}
COMMON = (
    Option("network", str, "Name of the network."),
    Option("epochs", int, "Passes over the training data."),
    Option("batch_size", int, "Examples per step, of all processes together."),
    Option("accumulate", int, "Parts that a step's batch is cut into, to spare memory.", default="1"),
    Option("optimizer", str, "adamw or sgd."),
    Option("learning_rate", float, "Highest learning rate.", ("--lr",)),
    Option("weight_decay", float, "Weight decay."),
    Option("warmup_epochs", float, "Epochs of warm-up."),
    Option("label_smoothing", float, "Label smoothing."),
    Option("class_weights", str, "balanced, or one number per class, separated by commas.", default="all alike"),
    Option("clip_norm", float, "Norm that the gradient is scaled down to.", default="no limit"),
    Option("ema_decay", float, "Keep a moving average of the weights, and evaluate and save that.", default="none"),
    Option("early_stopping", int, "Epochs without a better score after which to stop.", default="never"),
    Option("start_from", Path, "Model file whose network and weights to start from.", default="random weights"),
    Option(
        "teacher",
        Path,
        "Model file of a network to learn from beside the labels.",
        ("--teacher", "--distill-from"),
        "none",
    ),
    Option("distill_weight", float, "Share of the loss that goes by the teacher.", default="0.5"),
    Option("distill_temperature", float, "Divides the logits there.", default="2"),
    Option("augment", bool, "Change inputs at random.", ("--augment/--no-augment",)),
    Option("seed", int, "Seed of weights, order and augmentation.", default="0"),
    Option("precision", str, "float32 or bfloat16.", default="float32"),
    Option("memory_format", str, "channels_last or contiguous.", default="channels_last"),
    Option("accelerate", bool, "Train the network accelerated.", ("--accelerate/--no-accelerate",), "accelerate"),
    Option("checkpoint_seconds", float, "Time after which an epoch is saved on the way.", default="120"),
    Option("tensorboard", bool, "Write scalars for TensorBoard, too.", ("--tensorboard",), "no"),
)
_IMAGES = Option("on_bad_file", str, "stop at an image that cannot be read, or skip it.", default="stop")
_TEST = (
    Option("test_data", Path, "The test split.", default="found beside the data, or a part of it"),
    Option("test_fraction", float, "Share of each class that is the test split then.", default="0.2"),
)
DATA = {
    "classify": (
        Option(
            "data",
            str,
            "fashion-mnist-subset (comes with dwsep), fashion-mnist, folder, or the folder itself; or hf: and a data "
            "set of the Hugging Face hub.",
            default="fashion-mnist-subset",
        ),
        Option("data_dir", Path, "Folder of IDX files, or of images with one sub-folder per class.", default="none"),
        Option("image_size", int, "Pixels to resize the images of a folder or of the hub to.", default="32"),
        Option("in_channels", bool, "Read the images of a folder or of the hub as grey.", ("--grey",), "no"),
        Option("label_column", str, "Column of the labels, for images of the hub.", default="label"),
        Option("augmentation", str, "What --augment does: shift, or crop (for photos).", default="shift"),
        _IMAGES,
    ),
    "segment": (
        Option("data", Path, "Folder with train/images, train/masks, and val or test alike.", default="required"),
        Option("image_size", str, "Pixels, or HEIGHTxWIDTH, to bring images and masks to.", default="as they are"),
        Option("in_channels", bool, "Read the images as grey.", ("--grey",), "no"),
        Option("ignore_index", int, "Mask value of pixels that do not count.", default="255"),
        _IMAGES,
    ),
    "text": (
        Option("data", Path, "Table of labelled texts: .csv, .tsv, .jsonl; or hf:NAME.", default="required"),
        *_TEST,
        Option("text_column", str, "Column, or key, of the texts.", default="text"),
        Option("label_column", str, "Column, or key, of the labels.", default="label"),
        Option("encoding", str, "Of the files.", default="utf-8"),
        Option("max_length", int, "Words of a text that are kept.", default="256"),
        Option("min_count", int, "Times that a word must occur to be known.", default="2"),
    ),
    "series": (Option("data", Path, "A .ts or .npz file, or a folder with a pair of .ts.", default="required"), *_TEST),
}


def options_of(task: str) -> tuple[Option, ...]:
    """Every option of a task's settings."""
    return (*DATA[task], *COMMON, *NETWORK, *NETWORK_OF[task])


def command_of(task: str, run: Callable[..., None], help: str) -> Callable[..., None]:
    """Make a command with a task's options, which calls ``run(task, given, **where)``.

    ``given`` holds what stands on the command line, by setting; ``where`` the options that are no settings.
    """

    def command(**arguments: Any) -> None:
        where = {name: arguments.pop(name) for name in ("config", "output_dir", "resume", "overwrite", "threads")}
        run(task, {name: value for name, value in arguments.items() if value is not None}, **where)

    annotations: dict[str, Any] = {}
    for option in options_of(task):
        shown = option.default or ""
        if option.field in BY_TASK[task]:
            value = BY_TASK[task][option.field]
            shown = str(value) if not isinstance(value, bool) else f"{'' if value else 'no-'}{option.field}"
        info = typer.Option(*option.flags, help=option.help, show_default=shown)
        annotations[option.field] = Annotated[option.kind | None, info]
    where = {
        "config": (Path | None, typer.Option(help="YAML file of settings; options come before it."), None),
        "output_dir": (Path, typer.Option(help="Folder for checkpoint, model and log."), Path("runs/train")),
        "resume": (bool, typer.Option("--resume", help="Go on from the checkpoint in --output-dir."), False),
        "overwrite": (bool, typer.Option("--overwrite", help="Replace the run in --output-dir."), False),
        "threads": (
            int | None,
            typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice"),
            None,
        ),
    }
    parameters = [_parameter(name, annotation, None) for name, annotation in annotations.items()]
    for name, (kind, info, default) in where.items():
        annotations[name] = Annotated[kind, info]
        parameters.append(_parameter(name, annotations[name], default))
    # typer asks both for the parameters and for their types.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = annotations
    command.__name__, command.__doc__ = task, help
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
