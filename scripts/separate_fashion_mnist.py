"""A dense network trained on Fashion-MNIST, separated at a third of its macs, then trained on with its dense self.

    dwsep train --data fashion-mnist --network mobilenet_v1_dense --width-multiplier 0.125 --stem small --residual \
        --epochs 10 --output-dir runs/dense
    python scripts/separate_fashion_mnist.py runs/dense/model.safetensors
    python scripts/separate_fashion_mnist.py runs/dense/model.safetensors --knapsack docs/images/separate-knapsack.png

Prints what docs/separate.md shows. ``--against`` evaluates a separable network trained from scratch beside it;
``--knapsack`` compares ranks chosen by the knapsack with one rank for all, on test images, and draws that.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import dwsep
from dwsep import networks
from dwsep.analysis import count
from dwsep.networks._weights import read_model
from dwsep.training import evaluation, loop
from dwsep.training.config import TrainConfig
from dwsep.training.data import ImageDataset, Normalisation, load_idx
from dwsep.training.data.idx import DEBIAN_FOLDER

BATCH = 128
TUNING = {"epochs": 1, "warmup_epochs": 0.05, "learning_rate": 0.03, "label_smoothing": 0.0, "distill_weight": 0.9,
          "distill_temperature": 4.0}  # fmt: skip


def load(path: Path) -> tuple[nn.Module, Normalisation]:
    """A trained network and the normalisation of its images."""
    _, info = read_model(path)
    return networks.load_model(path).eval(), Normalisation(info.mean, info.std)


def accuracy(model: nn.Module, data: ImageDataset, normalisation: Normalisation) -> float:
    """On the test images, in per cent."""
    return 100 * evaluation.evaluate(model, data, normalisation=normalisation).accuracy


@torch.no_grad()
def output_error(model: nn.Module, dense: nn.Module, batches: tuple[Tensor, ...]) -> float:
    """Root mean square of what the logits lost, relative to that of the dense network's, in per cent."""
    pairs = [(model(x), dense(x)) for x in batches]
    lost = sum(float((made - wanted).square().sum()) for made, wanted in pairs)
    return 100 * (lost / sum(float(wanted.square().sum()) for _, wanted in pairs)) ** 0.5


def knapsack(dense: nn.Module, normalisation: Normalisation, calibration: tuple[Tensor, ...], test: ImageDataset,
             picture: Path) -> None:  # fmt: skip
    """One rank for all layers against ranks of their own at no more macs; errors on images held out."""
    batches = normalisation(test.images[:2048]).split(BATCH)
    x, rows = batches[0][:1], []
    for rank in (1, 2, 3, 4):
        uniform = copy.deepcopy(dense)
        same = dwsep.separate_(
            uniform, dwsep.SeparateConfig(rank=rank, measure_layers=False), example_inputs=x, calibration=calibration
        )
        own = copy.deepcopy(dense)
        config = dwsep.SeparateConfig(macs=same.macs_after, measure_layers=False)
        chosen = dwsep.separate_(own, config, example_inputs=x, calibration=calibration)
        row = [same.macs_after / 1e6, chosen.macs_after / 1e6]
        for model in (uniform, own):
            row += [output_error(model, dense, batches), accuracy(model, test, normalisation)]
        rows.append(row)
        print(
            f"rank {rank}: {row[0]:.2f} M, error {row[2]:.1f} %, accuracy {row[3]:.2f} %; "
            f"ranks of their own: {row[1]:.2f} M, error {row[4]:.1f} %, accuracy {row[5]:.2f} %",
            flush=True,
        )
    draw([list(column) for column in zip(*rows, strict=True)], accuracy(dense, test, normalisation), picture)


def draw(columns: list[list[float]], dense: float, picture: Path) -> None:
    """Errors and accuracies by macs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    macs_same, macs_own, error_same, accuracy_same, error_own, accuracy_own = columns
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, same, own, title in (
        (left, error_same, error_own, "output error on test images, %"),
        (right, accuracy_same, accuracy_own, "test accuracy, %"),
    ):
        axes.plot(macs_same, same, "o--", label="one rank for all layers")
        axes.plot(macs_own, own, "o-", label="ranks chosen by the knapsack")
        axes.set(xlabel="million multiply-adds (dense: 8.65)", title=title)
        axes.grid(alpha=0.3)
    right.axhline(dense, color="grey", linewidth=0.8, label="dense")
    right.legend()
    left.set_ylim(bottom=0)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Convert, evaluate, train on, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--against", type=Path, help="a separable network trained from scratch")
    parser.add_argument("--data-dir", type=Path, default=DEBIAN_FOLDER)
    parser.add_argument("--macs", type=float, default=1 / 3)
    parser.add_argument("--images", type=int, default=2048, help="calibration images")
    parser.add_argument("--knapsack", type=Path, help="compare with one rank for all, and draw to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    train, test = load_idx(arguments.data_dir, "train"), load_idx(arguments.data_dir, "test")
    dense, normalisation = load(arguments.dense)
    x = normalisation(test.images[:1])
    calibration = normalisation(train.images[: arguments.images]).split(BATCH)
    if arguments.knapsack:
        knapsack(dense, normalisation, calibration, test, arguments.knapsack)
        return
    print(f"dense: {accuracy(dense, test, normalisation):.2f} %, {count(dense, x).macs:,} macs", flush=True)
    for name, data, options in (
        ("separated, weights alone, one rank", None, {"rank": 2}),
        ("separated, one rank", calibration, {"rank": 2}),
        ("separated", calibration, {"macs": arguments.macs}),
    ):
        model = copy.deepcopy(dense)
        config = dwsep.SeparateConfig(**options, measure_layers=False)
        report = dwsep.separate_(model, config, example_inputs=x, calibration=data)
        print(f"{name}: {accuracy(model, test, normalisation):.2f} %, {report.macs_after:,} macs", flush=True)
    print(report)
    for seed in arguments.seeds:
        tuned = copy.deepcopy(model)
        dwsep.accelerate_(tuned)
        # As `dwsep train --start-from SEPARATED --distill-from DENSE` does with these settings.
        settings = TrainConfig(data="fashion-mnist", teacher=arguments.dense, seed=seed, **TUNING)  # type: ignore[arg-type]
        result = loop.train(tuned, train, test, settings, show_progress=False)
        print(f"trained on for {settings.epochs} epoch, seed {seed}: {100 * result.final.accuracy:.2f} %", flush=True)
    if arguments.against:
        other, own = load(arguments.against)
        print(f"separable from scratch: {accuracy(other, test, own):.2f} %, {count(other, x).macs:,} macs")


if __name__ == "__main__":
    main()
