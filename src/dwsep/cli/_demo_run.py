"""The run behind ``dwsep demo``: trains every row, verifies, times, and writes the files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.analysis._files import write_text_atomically
from dwsep.analysis._load import OtherProcesses, describe_disturbance
from dwsep.analysis.cost import count
from dwsep.analysis.latency import measure
from dwsep.analysis.machine import describe_machine, describe_versions
from dwsep.analysis.promise import summarise_promise
from dwsep.analysis.report import require_report_packages, write_demo_report
from dwsep.cli._console import make_progress
from dwsep.cli._demo_rows import ROWS, Row, as_plain, torch_format, verify
from dwsep.cli._demo_state import UnfinishedRun
from dwsep.cli._demo_training import TrainedRow, train_rows, training_settings

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from dwsep.training.data import ImageDataset

_BATCHES = (1, 64)
_STRIP_IMAGES = 24
# The recipe's rate is for a warm-up of hundreds of steps: reached after four, it makes the loss grow, and the rows part
# from one another by what their layouts round differently.
_QUICK = {"train_images": 512, "test_images": 256, "epochs": 1, "width_multiplier": 0.25, "learning_rate": 0.02}


@dataclass(frozen=True)
class Settings:
    """The options of the command; None stands for a default that depends on recipe or machine."""

    output_dir: Path = Path("runs/demo")
    epochs: int | None = None
    seed: int = 0
    threads: int | None = None
    quick: bool = False
    fresh: bool = False


def run(settings: Settings, console: Console) -> dict[str, Any]:
    """Runs the demo.

    Args:
        settings: The options.
        console: Console for progress.

    Returns:
        The results, as they were written to ``results.json``.

    Raises:
        ValueError: An option is out of range.
        ImportError: A package of the extras "train" or "report" is missing.
        RuntimeError: The network on dwsep differs from the plain one with the same weights.
        KeyboardInterrupt: Interrupted; what was trained is kept.
    """
    import torch

    require_report_packages()  # rather than after minutes of training
    if settings.threads is not None and settings.threads < 1:
        raise ValueError(f"threads must be at least 1, got {settings.threads}")
    if settings.epochs is not None and settings.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {settings.epochs}")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads_before)
    try:
        return _run(settings, console)
    finally:
        torch.set_num_threads(threads_before)


def _run(settings: Settings, console: Console) -> dict[str, Any]:
    config, data = _plan(settings)
    training_settings(ROWS[0], config, settings.output_dir)  # a bad option fails here, before anything is written
    machine, versions = _describe_machine(), describe_versions()
    unfinished = UnfinishedRun(
        settings.output_dir, {"config": config, "machine": machine, "versions": versions}, settings.fresh
    )
    others = OtherProcesses()
    if unfinished.continued:
        console.print("going on from the run that was interrupted")
    with _keeping(unfinished):
        trained = train_rows(config, data, unfinished, console)
        with make_progress(console) as progress:
            verification = _verify(config, data, trained)
            latencies = _time(trained, data["test"], settings.quick, progress)
        other_cores = others.cores()
        rows = [_summarise(row, trained[row.key], latencies) for row in ROWS]
        results = {
            "command": _command(settings, config),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": config,
            "machine": machine,
            "versions": versions,
            "data": {
                "name": config["data"],
                "train_images": len(data["train"]),
                "test_images": len(data["test"]),
                "class_names": list(data["test"].class_names),
            },
            "rows": rows,
            "promise": summarise_promise(rows),
            "verification": verification,
            "other_processes_cores": other_cores,
            "disturbance": describe_disturbance(other_cores, config["threads"], machine["logical_cores"]),
            "strip": _strip(trained, data["test"]),
            "wall_seconds": unfinished.seconds,
        }
        write_text_atomically(settings.output_dir / "results.json", json.dumps(results, indent=2) + "\n")
        write_demo_report(results, settings.output_dir / "report.html")
    unfinished.remove()
    return results


@contextmanager
def _keeping(unfinished: UnfinishedRun) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        unfinished.save()
        raise KeyboardInterrupt(
            "the demo was interrupted; run the same command again to go on from there"
        ) from interrupt


def _plan(settings: Settings) -> tuple[dict[str, Any], dict[str, ImageDataset]]:
    """The settings of training, the same for every row, and the images."""
    import torch

    from dwsep.training.data import load_fashion_mnist_subset
    from dwsep.training.recipes import DEMO

    config = {
        **DEMO,
        "data": "fashion-mnist-subset",
        "seed": settings.seed,
        "threads": torch.get_num_threads(),
        "quick": settings.quick,
    }
    data = {split: load_fashion_mnist_subset(split) for split in ("train", "test")}
    if settings.quick:
        config["network_options"] = {**config["network_options"], "width_multiplier": _QUICK["width_multiplier"]}
        config["epochs"] = _QUICK["epochs"]
        config["learning_rate"] = _QUICK["learning_rate"]
        data = {split: _first(images, _QUICK[f"{split}_images"]) for split, images in data.items()}
    if settings.epochs is not None:
        config["epochs"] = settings.epochs
    config["warmup_epochs"] = min(config["warmup_epochs"], config["epochs"] / 2)
    return config, data


def _first(data: ImageDataset, size: int) -> ImageDataset:
    return replace(data, images=data.images[:size], labels=data.labels[:size], name=f"{data.name}, first {size}")


def _describe_machine() -> dict[str, Any]:
    import dwsep

    native = dwsep.ops.native_status()
    return {**describe_machine(), "dwsep_isa": native.isa, "dwsep_native": native.reason}


def _command(settings: Settings, config: dict[str, Any]) -> str:
    parts = ["dwsep demo", f"--epochs {config['epochs']}", f"--seed {config['seed']}", f"--threads {config['threads']}"]
    return " ".join([*parts, "--quick"] if settings.quick else parts)


def _verify(config: dict[str, Any], data: dict[str, ImageDataset], trained: dict[str, TrainedRow]) -> dict[str, float]:
    images = data["test"]
    ours = trained["dwsep"].model.eval()
    plain = as_plain(
        ours, num_classes=images.num_classes, in_channels=images.in_channels, options=config["network_options"]
    )
    plain = plain.to(memory_format=torch_format("channels_last")).eval()  # type: ignore[call-overload]
    return verify(ours, plain, trained["dwsep"].normalisation(images.images[: max(_BATCHES)]))


def _time(trained: dict[str, TrainedRow], images: ImageDataset, quick: bool, progress: Any) -> dict[str, Any]:
    import torch

    def case(row: Row, batch: int) -> Any:
        model = trained[row.key].model.eval()
        x = trained[row.key].normalisation(images.images[:batch])
        x = x.contiguous(memory_format=torch_format(row.memory_format))
        return lambda: model(x)

    cases = {f"{row.key} {batch}": case(row, batch) for row in ROWS for batch in _BATCHES}
    options = (
        {"rounds": 3, "min_seconds": 0.002, "warmup_seconds": 0.0}
        if quick
        else {"rounds": 25, "min_seconds": 0.03, "warmup_seconds": 0.3, "max_seconds": 30.0}
    )
    task = progress.add_task("timing inference", total=options["rounds"], note="")
    with torch.inference_mode():
        measured = measure(cases, **options, on_round=lambda done, _: progress.update(task, completed=done))
    progress.update(task, completed=options["rounds"])
    return {name: asdict(latency) for name, latency in measured.items()}


def _summarise(row: Row, trained: TrainedRow, latencies: dict[str, Any]) -> dict[str, Any]:
    import torch

    cost = count(trained.model, torch.zeros(trained.input_shape).to(memory_format=torch_format(row.memory_format)))
    return {
        **asdict(row),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "macs_spatial": cost.macs_spatial,
        "test_accuracy": trained.test_accuracy,
        "epoch_seconds": statistics.median(record["seconds"] for record in trained.history),
        "history": trained.history,
        "latency": {str(batch): latencies[f"{row.key} {batch}"] for batch in _BATCHES},
    }


def _strip(trained: dict[str, TrainedRow], data: ImageDataset) -> list[dict[str, Any]]:
    import torch

    chosen = torch.linspace(0, len(data) - 1, min(_STRIP_IMAGES, len(data))).long()
    predictions = {}
    for key in ("dense", "dwsep"):
        with torch.inference_mode():
            logits = trained[key].model.eval()(trained[key].normalisation(data.images[chosen]))
        predictions[key] = [data.class_names[index] for index in logits.argmax(1).tolist()]
    return [
        {
            "index": index,
            "label": data.class_names[int(data.labels[index])],
            "image": _data_uri(data.images[index]),
            "predictions": [
                {"key": key, "name": key, "class_name": names[place]} for key, names in predictions.items()
            ],
        }
        for place, index in enumerate(chosen.tolist())
    ]


def _data_uri(image: Tensor) -> str:
    import base64
    import io

    from PIL import Image

    pixels = image.squeeze(0) if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
