"""Training throughput of a recipe, accelerated and not, in turns: what `dwsep train` shows as images per second.

    python scripts/training_throughput.py classify
    python scripts/training_throughput.py segment --network-options '{"width_multiplier": 0.5}'
    python scripts/training_throughput.py segment --parts

The data of the segmentation is random: what the pixels are changes no time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace

import torch

from dwsep.analysis.allocator import keep_freed_memory
from dwsep.training._run import Run
from dwsep.training.config import Settings, make_config
from dwsep.training.data import Examples, SegmentationDataset, load_fashion_mnist_subset
from dwsep.training.loop import train
from dwsep.training.setup import build_model, complete_options

WAYS = {
    "accelerated": {"accelerate": True, "memory_format": "channels_last"},
    "not, channels last": {"accelerate": False, "memory_format": "channels_last"},
    "not, contiguous": {"accelerate": False, "memory_format": "contiguous"},
}


def examples(task: str, count: int, size: int) -> Examples:
    if task == "classify":
        data = load_fashion_mnist_subset("train")
        return replace(data, images=data.images[:count], labels=data.labels[:count])
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    masks = torch.randint(0, 3, (count, size // 16, size // 16), dtype=torch.uint8)
    masks = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return SegmentationDataset(images, masks, ("sea", "land", "lake"), "random masks")


def settings(arguments: argparse.Namespace, data: Examples, way: str) -> Settings:
    values = {"task": arguments.task, "epochs": 2, "warmup_epochs": 0.5, "augment": arguments.augment, **WAYS[way]}
    if arguments.task == "segment":
        values["data"] = "in memory"
    values |= {"network_options": json.loads(arguments.network_options)}
    values |= {} if arguments.network is None else {"network": arguments.network}
    values |= {} if arguments.ema_decay is None else {"ema_decay": arguments.ema_decay}
    return complete_options(make_config(values), data)


def throughput(arguments: argparse.Namespace, data: Examples) -> None:
    """The rate of a run's second epoch, for each way, and the ratio of medians."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    test = examples(arguments.task, 8, arguments.size)
    for _ in range(arguments.rounds):
        for way, found in rates.items():
            config = settings(arguments, data, way)
            result = train(build_model(config, data), data, test, config, show_progress=False)
            found.append(result.history[-1].images_per_second)
    medians = {way: statistics.median(found) for way, found in rates.items()}
    for way, found in rates.items():
        times = medians["accelerated"] / medians[way]
        spread = f"{min(found):.4g} to {max(found):.4g}"
        print(f"{way}: {medians[way]:.4g} images/s ({spread}), accelerated is {times:.2f} times as fast")


def parts(arguments: argparse.Namespace, data: Examples) -> None:
    """Where the time of a step goes, in milliseconds."""
    for way in WAYS:
        config = settings(arguments, data, way)
        run = Run(build_model(config, data), data, data, config)
        run.called.train()
        spent: dict[str, list[float]] = {}
        for epoch in range(3):
            batches = run.loader.epoch(epoch)
            while True:
                marks = [("", time.perf_counter())]
                batch = next(batches, None)
                if batch is None:
                    break
                marks.append(("data", time.perf_counter()))
                logits = run.called(batch[0])
                marks.append(("forward", time.perf_counter()))
                loss = run.loss(logits, batch[1], batch[0])
                marks.append(("loss", time.perf_counter()))
                run.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                marks.append(("backward", time.perf_counter()))
                run.optimizer.step()
                marks.append(("optimiser", time.perf_counter()))
                if run.average is not None:
                    run.average.update(100)
                    marks.append(("average", time.perf_counter()))
                for (_, before), (name, after) in itertools.pairwise(marks):
                    spent.setdefault(name, []).append(1e3 * (after - before))
        medians = {name: statistics.median(found) for name, found in spent.items()}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
        print(f"{way}: {sum(medians.values()):.2f} ms = {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("classify", "segment"))
    parser.add_argument("--network")
    parser.add_argument("--network-options", default="{}", help="as JSON")
    parser.add_argument("--count", type=int, help="examples; 1024 images, or 16 with masks")
    parser.add_argument("--size", type=int, default=256, help="height and width of images with masks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--ema-decay", type=float)
    parser.add_argument("--parts", action="store_true", help="print where the time of a step goes")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = examples(
        arguments.task, arguments.count or {"classify": 1024, "segment": 16}[arguments.task], arguments.size
    )
    print(f"{arguments.task}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    (parts if arguments.parts else throughput)(arguments, data)


if __name__ == "__main__":
    main()
