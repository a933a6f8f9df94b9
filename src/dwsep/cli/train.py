"""``dwsep train``: train a network on images, masks, texts or series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer
from typer.core import TyperGroup

from dwsep.cli._train_options import NETWORK, NETWORK_OF, command_of
from dwsep.errors import unknown_name

if TYPE_CHECKING:
    from dwsep.training.config import Settings

_HELP = {
    "classify": "Train a classifier of images.",
    "segment": "Train a network that gives every pixel a class.",
    "text": "Train a classifier of texts.",
    "series": "Train a classifier of series.",
}
_MORE = """ Ctrl-C stops it and --resume goes on.

Under torchrun, processes train together. Has glibc keep freed memory, which is faster; DWSEP_KEEP_ALLOCATOR=1 leaves
it alone."""


class _DefaultsToClassify(TyperGroup):
    """``dwsep train --epochs 1`` is ``dwsep train classify --epochs 1``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["classify", *args]
        elif args[0] not in self.commands and args[0] != "--help":
            raise unknown_name("task", args[0], tuple(self.commands))
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_DefaultsToClassify, help="Train a network: classify (the default), segment, text or series.")


def _run(
    task: str,
    given: dict[str, Any],
    *,
    config: Path | None,
    output_dir: Path,
    resume: bool,
    overwrite: bool,
    threads: int | None,
) -> None:
    import torch

    from dwsep.analysis.allocator import keep_freed_memory
    from dwsep.training.distributed import Processes

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    settings = _settings(task, given, config, output_dir, resume)
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    processes = Processes.join()
    try:
        _train(settings, processes, resume, overwrite)
    finally:
        processes.leave()


def _train(config: Settings, processes: Any, resume: bool, overwrite: bool) -> None:
    from dwsep.cli._console import output_console, plain_warnings
    from dwsep.training import loop
    from dwsep.training.interrupt import TrainingInterrupted
    from dwsep.training.setup import build_model, complete_options, load_data

    with plain_warnings():
        train_data = load_data(config, "train")
        test_data = load_data(config, "val" if config.task == "segment" else "test")
    if not resume:
        config = complete_options(config, train_data)
    output_dir = config.output_dir
    assert output_dir is not None
    model = build_model(config, train_data, output_dir / loop.CHECKPOINT_FILE if resume else None)
    try:
        result = loop.train(
            model, train_data, test_data, config, resume=resume, overwrite=overwrite, processes=processes
        )
    except FileExistsError as error:
        raise FileExistsError(
            f"{output_dir} holds an earlier run: --resume, --overwrite or another --output-dir"
        ) from error
    except TrainingInterrupted as stopped:
        if processes.is_first:
            # Standard error, as for every message that is not a result.
            again = "dwsep train" + ("" if config.task == "classify" else f" {config.task}")
            typer.echo(
                f"interrupted; the run is saved, go on with: {again} --resume --output-dir {output_dir}", err=True
            )
        raise typer.Exit(128 + stopped.signal_number) from stopped
    if processes.is_first:
        iou = f"test mIoU {100 * result.final.mean_iou:.2f} %, " if config.task == "segment" else ""
        output_console().print(
            f"{config.network}: {iou}test accuracy {100 * result.final.accuracy:.2f} % after {len(result.history)} "
            f"epochs, {output_dir / loop.MODEL_FILE}",
            soft_wrap=True,
            markup=False,
        )


def _settings(task: str, given: dict[str, Any], path: Path | None, output_dir: Path, resume: bool) -> Settings:
    """The settings of a run: those on the command line, then the YAML file's, then those of the run that goes on."""
    from dwsep import networks
    from dwsep.training import checkpoint, loop
    from dwsep.training.config import make_config, read_yaml

    values = {"task": task, **(read_yaml(path) if path is not None else {})}
    if values["task"] != task:
        raise ValueError(f"{path} is for the task {values['task']!r}: dwsep train {values['task']}")
    options = {
        option.field: given.pop(option.field) for option in (*NETWORK, *NETWORK_OF[task]) if option.field in given
    }
    values.update(_in_settings_form(task, given))
    options = {**values.pop("network_options", {}), **options}
    if not resume:
        if task != "classify" and "data" not in values:
            raise ValueError(f"dwsep train {task} needs --data")
        config = make_config({**values, "network_options": options, "output_dir": output_dir})
        if config.network not in networks.names(task):  # known before the data is read
            raise unknown_name("network", config.network, networks.names(task))
        return config
    saved_path = output_dir / loop.CHECKPOINT_FILE
    if not saved_path.exists():
        raise FileNotFoundError(f"{output_dir} holds no {loop.CHECKPOINT_FILE} to resume")
    saved = checkpoint.load(saved_path).config
    if saved.task != task:
        raise ValueError(
            f"{saved_path} is of another task: dwsep train {saved.task} --resume --output-dir {output_dir}"
        )
    merged = {**saved.model_dump(), "output_dir": output_dir, **values}
    merged["network_options"] = {**saved.network_options, **options}
    config = make_config(merged)
    differences = saved.differences(config)
    if differences:
        raise ValueError(f"{saved_path} was made with other settings: {'; '.join(differences)}")
    return config


def _in_settings_form(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """What stands on the command line as settings: grey is one channel, a folder's path is data of its kind."""
    from dwsep.training.config import DataName
    from dwsep.training.data.huggingface import PREFIX, is_hub

    values = dict(given)
    if "in_channels" in values:
        values["in_channels"] = 1 if values["in_channels"] else 3
    if task == "classify" and "data" in values:
        data = values["data"]
        if is_hub(data):
            values["data_dir"], values["data"] = Path(data.removeprefix(PREFIX)), "huggingface"
        elif "data_dir" not in values and Path(data).is_dir():
            values["data_dir"], values["data"] = Path(data), "folder"
        elif data not in get_args(DataName):
            found = "which is a file" if Path(data).is_file() else "which does not exist"
            raise ValueError(
                f"data must be a folder of images with one sub-folder per class, hf:NAME, fashion-mnist or "
                f"fashion-mnist-subset, got {data!r}, {found}; dwsep train text, series and segment take other data"
            )
    if task == "segment" and "image_size" in values:
        sides = str(values["image_size"]).lower().split("x")
        if not all(side.isdecimal() for side in sides) or len(sides) > 2:
            raise ValueError(f"image_size must be pixels or HEIGHTxWIDTH, got {values['image_size']!r}")
        values["image_size"] = int(sides[0]) if len(sides) == 1 else tuple(map(int, sides))
    if values.get("class_weights") not in (None, "balanced"):
        try:
            values["class_weights"] = tuple(float(weight) for weight in values["class_weights"].split(","))
        except ValueError:
            raise ValueError(
                f"class_weights must be balanced or numbers separated by commas, got {values['class_weights']!r}"
            ) from None
    return values


for _task, _help in _HELP.items():
    app.command(_task)(command_of(_task, _run, _help + _MORE))
