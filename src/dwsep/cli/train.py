"""``dwsep train``: train a network on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dwsep.training.recipes import DEFAULTS, default_network_options

_DEFAULT_OUTPUT = Path("runs/train")


def train(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="fashion-mnist-subset (comes with dwsep), fashion-mnist, or folder.")
    ] = "fashion-mnist-subset",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of IDX files, or of images with one sub-folder per class.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Pixels to resize the images of a folder to.")] = 32,
    grey: Annotated[bool, typer.Option("--grey", help="Read the images of a folder as grey.")] = False,
    network: Annotated[str, typer.Option(help="Name of the network.")] = "mobilenet_v1",
    width_multiplier: Annotated[
        float | None, typer.Option(help="Scales the channels of the network.", show_default="0.25")
    ] = None,
    stem: Annotated[
        str | None, typer.Option(help="imagenet or small.", show_default="small for images up to 64 pixels")
    ] = None,
    residual: Annotated[
        bool | None,
        typer.Option("--residual/--no-residual", help="Add a block's input to its output.", show_default="no-residual"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = DEFAULTS["epochs"],
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = DEFAULTS["batch_size"],
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = DEFAULTS["optimizer"],
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = DEFAULTS["learning_rate"],
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = DEFAULTS["weight_decay"],
    warmup_epochs: Annotated[float, typer.Option(help="Epochs of warm-up.")] = DEFAULTS["warmup_epochs"],
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = DEFAULTS["label_smoothing"],
    augment: Annotated[
        bool, typer.Option("--augment/--no-augment", help="Shift and mirror images at random.")
    ] = DEFAULTS["augment"],
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    memory_format: Annotated[str, typer.Option(help="channels_last or contiguous.")] = "channels_last",
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoint, model and log.")] = _DEFAULT_OUTPUT,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output-dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output-dir.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
) -> None:
    """Train a network; Ctrl-C stops it and --resume goes on.

    Has glibc keep freed memory, which is faster; DWSEP_KEEP_ALLOCATOR=1 leaves it alone.
    """
    import torch

    from dwsep.analysis.allocator import keep_freed_memory
    from dwsep.cli._console import output_console
    from dwsep.training import loop
    from dwsep.training.config import TrainConfig
    from dwsep.training.interrupt import TrainingInterrupted
    from dwsep.training.setup import build_model, load_data

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    given: dict[str, Any] = {
        "network": network,
        "data": data,
        "data_dir": data_dir,
        "image_size": image_size,
        "in_channels": 1 if grey else 3,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": lr,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "seed": seed,
        "precision": precision,
        "memory_format": memory_format,
    }
    options = {"width_multiplier": width_multiplier, "stem": stem, "residual": residual}
    options = {name: value for name, value in options.items() if value is not None}
    if resume:
        config = _resumed_config(output_dir, _only_typed(context, given), options)
    else:
        config = TrainConfig(network_options=options, output_dir=output_dir, **given)
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    train_data, test_data = load_data(config, "train"), load_data(config, "test")
    if not resume:
        filled = {**default_network_options(train_data.image_size), **options}
        config = config.model_copy(update={"network_options": filled})
    model = build_model(config, train_data)
    try:
        result = loop.train(model, train_data, test_data, config, resume=resume, overwrite=overwrite)
    except FileExistsError as error:
        raise FileExistsError(
            f"{output_dir} holds an earlier run: --resume, --overwrite or another --output-dir"
        ) from error
    except TrainingInterrupted as stopped:
        # Standard error, as for every message that is not a result.
        typer.echo(
            f"interrupted; the run is saved, go on with: dwsep train --resume --output-dir {output_dir}", err=True
        )
        raise typer.Exit(128 + stopped.signal_number) from stopped
    output_console().print(
        f"{config.network}: test accuracy {100 * result.final.accuracy:.2f} % after {len(result.history)} epochs, "
        f"{output_dir / loop.MODEL_FILE}",
        soft_wrap=True,
        markup=False,
    )


def _only_typed(context: typer.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that stand on the command line, as opposed to defaults."""
    options = {"learning_rate": "lr", "in_channels": "grey"}
    typed = {}
    for name, value in given.items():
        source = context.get_parameter_source(options.get(name, name))
        if source is not None and source.name != "DEFAULT":
            typed[name] = value
    return typed


def _resumed_config(output_dir: Path, typed: dict[str, Any], options: dict[str, Any]) -> Any:
    """The settings of the run in a folder; what is typed must agree with them, but for where things lie."""
    from dwsep.training import checkpoint, loop
    from dwsep.training.config import TrainConfig

    path = output_dir / loop.CHECKPOINT_FILE
    if not path.exists():
        raise FileNotFoundError(f"{output_dir} holds no {loop.CHECKPOINT_FILE} to resume")
    saved = checkpoint.load(path).config
    values = {**saved.model_dump(), "output_dir": output_dir, **typed}
    values["network_options"] = {**saved.network_options, **options}
    config = TrainConfig(**values)
    differences = saved.differences(config)
    if differences:
        raise ValueError(f"{path} was made with other settings: {'; '.join(differences)}")
    return config
