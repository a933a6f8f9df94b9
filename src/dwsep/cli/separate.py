"""``dwsep separate``: a trained dense network becomes separable within a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

_DEFAULT_OUTPUT = Path("separated.safetensors")


def separate(
    network: Annotated[str, typer.Argument(help="timm:NAME, torchvision:NAME, or a network of dwsep.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Its trained weights.")] = None,
    error: Annotated[float | None, typer.Option(help="Budget: relative error of the network's output.")] = None,
    macs: Annotated[float | None, typer.Option(help="Budget: share of the dense macs, or a count above 1.")] = None,
    latency: Annotated[float | None, typer.Option(help="Budget: share of the dense latency, measured.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Budget: milliseconds of a call, measured.")] = None,
    rank: Annotated[int | None, typer.Option(help="Instead of a budget: one rank for all layers.")] = None,
    order: Annotated[str, typer.Option(help="auto, depthwise_first or pointwise_first.")] = "auto",
    include: Annotated[list[str] | None, typer.Option(help="Names or patterns of modules to separate.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Names or patterns of modules to leave dense.")] = None,
    min_channels: Annotated[int, typer.Option(min=1, help="Layers with fewer channels stay dense.")] = 8,
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration: a folder of images, labels not needed; or fashion-mnist-subset, fashion-mnist.",
            show_default="weights alone",
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of IDX files, or of images.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 512,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of the images.", show_default="the network's")] = None,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of a timm or torchvision network.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call that latency is measured for.")] = 1,
    memory_format: Annotated[str, typer.Option(help="channels_last or contiguous.")] = "channels_last",
    output: Annotated[Path, typer.Option(help="File of the separated network.")] = _DEFAULT_OUTPUT,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="PyTorch's choice")] = None,
) -> None:
    """Make the dense convolutions of a trained network separable, weights kept, within a budget.

    Exactly one of --error, --macs, --latency, --latency-ms and --rank. The file of one of dwsep's own networks goes
    wherever a model file does: train --start-from, evaluate, predict. dwsep.convert.load_ reads those of timm's and
    torchvision's into the network as the library builds it.
    """
    import torch

    from dwsep import convert
    from dwsep.analysis._files import write_text_atomically
    from dwsep.cli._analyze_networks import check_runs
    from dwsep.cli._console import check_writable, make_progress, output_console, progress_console
    from dwsep.cli._named_network import build
    from dwsep.errors import unknown_name
    from dwsep.networks._weights import save_model

    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    if memory_format not in formats:
        raise unknown_name("memory_format", memory_format, tuple(formats))
    _check_budget({"--error": error, "--macs": macs, "--latency": latency, "--latency-ms": latency_ms, "--rank": rank})
    if data is None and data_dir is not None:
        raise ValueError(f"--data-dir {data_dir} needs --data, which says what is in it: --data folder, for images")
    for option, path in (("--output", output), ("--html", html)):
        check_writable(option, path)
    config = convert.SeparateConfig(
        error=error,
        macs=macs,
        latency=latency,
        latency_seconds=None if latency_ms is None else latency_ms / 1000,
        rank=rank,
        order=order,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        min_channels=min_channels,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    named = build(network, checkpoint, num_classes=num_classes, size=size)
    model = named.model.to(memory_format=formats[memory_format])  # type: ignore[call-overload]
    console = progress_console()
    if checkpoint is None:
        console.print("no --checkpoint: the weights are random")
    if data is None:
        console.print("no --data: weights are approximated instead of outputs, which loses far more")
    with _saying_that_nothing_is_written(), make_progress(console) as progress:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done, total=total)

        calibration = None
        if data is not None:
            batches = _calibration(named, data, data_dir, images, told).split(32)
            calibration = [batch.contiguous(memory_format=formats[memory_format]) for batch in batches]
            example = torch.cat([calibration[0]] * -(-batch_size // len(calibration[0])))[:batch_size]
        else:
            shape = (batch_size, named.in_channels, named.image_size, named.image_size)
            example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        example = example.contiguous(memory_format=formats[memory_format])
        check_runs(network, model, example, "--size")
        report = convert.separate_(model, config, example_inputs=example, calibration=calibration, on_progress=told)
    if report.separated:
        if named.info is not None:
            save_model(output, model, dataclasses.replace(named.info, structure=convert.structure_of(model)))
        else:
            convert.save(output, model, metadata={"network": network, "num_classes": str(num_classes)})
    if html is not None:
        page = f"<!doctype html><meta charset=utf-8><title>{report.summary}</title>{report._repr_html_()}\n"
        write_text_atomically(html, page)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report, output_console())
    if not report.separated:
        console.print("no layer was separated: no network is written")
        raise typer.Exit(1)
    console.print(f"wrote {output}", soft_wrap=True, markup=False)


def _check_budget(budgets: dict[str, float | None]) -> None:
    """As ``SeparateConfig`` checks it, with the names of the options."""
    given = [option for option, value in budgets.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"exactly one of {', '.join(budgets)} must be given, got {got}")
    milliseconds = budgets["--latency-ms"]
    if milliseconds is not None and not 0 < milliseconds < float("inf"):
        raise ValueError(f"--latency-ms must be finite and above 0, got {milliseconds}")


@contextlib.contextmanager
def _saying_that_nothing_is_written() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: nothing is written") from None


def _print(report: Any, console: Any) -> None:
    """As a table with lines where it fits, else as plain text, which a file or a narrow terminal keeps readable."""
    text = str(report)
    lines_of_the_table = 40  # characters: a column's take three
    if console.is_terminal and console.width >= max(map(len, text.splitlines())) + lines_of_the_table:
        console.print(report)
    else:
        print(text)


def _calibration(named: Any, data: str, data_dir: Path | None, count: int, on_image: Any) -> Any:
    """Images drawn from the training split, or from a folder, normalised as the network takes them."""
    import torch

    from dwsep.training.data import Normalisation
    from dwsep.training.data.images import check_channels, read_image
    from dwsep.training.prediction import image_files

    generator = torch.Generator().manual_seed(0)
    if data == "folder" or Path(data).is_dir():
        folder = data_dir if data == "folder" else Path(data)
        if folder is None:
            raise ValueError("--data folder needs --data-dir, the folder; or name it in --data")
        check_channels(named.in_channels)
        files = image_files([folder / "train" if (folder / "train").is_dir() else folder])
        chosen, pixels = torch.randperm(len(files), generator=generator)[:count].tolist(), []
        for done, number in enumerate(chosen, 1):
            pixels.append(read_image(files[number], (named.image_size, named.image_size), named.in_channels))
            on_image("reading images", done, len(chosen))
        images = torch.stack(pixels)
    else:
        images = _images_of(named, data, data_dir)
        images = images[torch.randperm(len(images), generator=generator)[:count]]
    return Normalisation(named.mean, named.std)(images)


def _images_of(named: Any, data: str, data_dir: Path | None) -> Any:
    from dwsep.training.config import TrainConfig
    from dwsep.training.data import ImageDataset
    from dwsep.training.setup import load_data

    known = ("fashion-mnist-subset", "fashion-mnist")
    if data not in known:
        raise ValueError(f"--data: {data} is neither a folder nor one of {', '.join(known)}")
    images = load_data(TrainConfig.model_validate({"data": data, "data_dir": data_dir}), "train")
    assert isinstance(images, ImageDataset)  # as TrainConfig's data are
    if images.in_channels != named.in_channels:
        raise ValueError(f"the network takes images with {named.in_channels} channels, {images.name} has "
                         f"{images.in_channels}")  # fmt: skip
    return images.images
