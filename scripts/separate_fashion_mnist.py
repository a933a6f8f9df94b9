"""A dense network trained on Fashion-MNIST, separated at a third of its macs, then fine-tuned with its dense self.

    dwsep train --data fashion-mnist --network mobilenet_v1_dense --width-multiplier 0.125 --stem small --residual \
        --epochs 10 --output-dir runs/dense
    python scripts/separate_fashion_mnist.py runs/dense/model.safetensors

Prints what docs/guides/separate.md shows. ``--against`` evaluates a separable network trained from scratch beside it.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dwsep
from dwsep import networks
from dwsep.analysis import count
from dwsep.networks._weights import read_model
from dwsep.training import evaluation
from dwsep.training.data import BatchLoader, ImageDataset, Normalisation, load_idx
from dwsep.training.data.idx import DEBIAN_FOLDER
from dwsep.training.optimisation import learning_rate_at

BATCH, CALIBRATION, TEMPERATURE = 128, 2048, 2.0


def load(path: Path) -> tuple[nn.Module, Normalisation]:
    """A trained network and the normalisation of its images."""
    _, info = read_model(path)
    model = networks.create(
        info.network, num_classes=info.num_classes, in_channels=info.in_channels, weights=path, **info.options
    )
    return model.eval(), Normalisation(info.mean, info.std)


def fine_tune(model: nn.Module, teacher: nn.Module, loader: BatchLoader, epochs: int, peak: float) -> None:
    """Train on labels and on the teacher's logits, in equal parts."""
    groups = dwsep.nn.parameter_groups(model, weight_decay=0.0)
    optimizer = torch.optim.AdamW([p for group in groups for p in group["params"]], lr=peak, weight_decay=0.0)
    total = epochs * len(loader)
    model.train()
    for step in range(total):
        if step % len(loader) == 0:
            batches = loader.epoch(1000 + step // len(loader))
        images, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total, total // 20, peak)
        with torch.no_grad():
            wanted = F.log_softmax(teacher(images) / TEMPERATURE, 1)
        logits = model(images)
        close = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), wanted, log_target=True, reduction="batchmean")
        loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * TEMPERATURE**2 * close
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def accuracy(model: nn.Module, data: ImageDataset, normalisation: Normalisation) -> str:
    """On the test images."""
    return f"{100 * evaluation.evaluate(model, data, normalisation=normalisation).accuracy:.2f} %"


def main() -> None:
    """Convert, evaluate, fine-tune, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--against", type=Path, help="a separable network trained from scratch")
    parser.add_argument("--data-dir", type=Path, default=DEBIAN_FOLDER)
    parser.add_argument("--macs", type=float, default=1 / 3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    train, test = load_idx(arguments.data_dir, "train"), load_idx(arguments.data_dir, "test")
    dense, normalisation = load(arguments.dense)
    x = normalisation(test.images[:1])
    loader = BatchLoader(train, BATCH, normalisation, seed=0)  # as the dense network was trained: not augmented
    print(f"dense: {accuracy(dense, test, normalisation)}, {count(dense, x).macs:,} macs", flush=True)
    calibration = normalisation(train.images[:CALIBRATION]).split(BATCH)
    for name, data, options in (
        ("separated, weights alone, one rank", None, {"rank": 2}),
        ("separated, one rank", calibration, {"rank": 2}),
        ("separated", calibration, {"macs": arguments.macs}),
    ):
        model = copy.deepcopy(dense)
        config = dwsep.SeparateConfig(**options, measure_layers=False)
        report = dwsep.separate_(model, config, example_inputs=x, calibration=data)
        print(f"{name}: {accuracy(model, test, normalisation)}, {report.macs_after:,} macs", flush=True)
    print(report)
    dwsep.accelerate_(model)
    fine_tune(model, dense, loader, arguments.epochs, arguments.lr)
    print(f"separated, {arguments.epochs} epochs of fine-tuning: {accuracy(model, test, normalisation)}", flush=True)
    if arguments.against:
        other, own = load(arguments.against)
        print(f"separable from scratch: {accuracy(other, test, own)}, {count(other, x).macs:,} macs")


if __name__ == "__main__":
    main()
