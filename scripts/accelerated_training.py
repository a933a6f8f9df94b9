"""What acceleration does to what a network learns and sees: 200 steps of SGD on Fashion-MNIST with and without, and the
five best classes of torchvision's trained MobileNetV2 on photos before and after.

    python scripts/accelerated_training.py [--data FOLDER] [--weights FILE.pth --photos FOLDER]

``--data`` holds the full data set's IDX files (Debian: dataset-fashion-mnist); without it the package's subset is used.
Needs timm and torchvision.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

import dwsep
from dwsep.training.data import ImageDataset, load_fashion_mnist_subset, load_idx

STEPS, BATCH = 200, 64


def _own_mobilenet() -> nn.Module:
    return dwsep.networks.create("mobilenet_v1", num_classes=10, in_channels=1, width_multiplier=0.25, stem="small")


def _timm_mobilenet() -> nn.Module:
    return timm.create_model("mobilenetv3_small_100", in_chans=1, num_classes=10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dwsep's mobilenet_v1, width 0.25, 28 px": (_own_mobilenet, 28),
    "timm's mobilenetv3_small_100, 56 px": (_timm_mobilenet, 56),
}


def _images(data: ImageDataset, at: torch.Tensor, size: int) -> torch.Tensor:
    return nn.functional.interpolate(data.images[at].float() / 255, size, mode="bilinear") - 0.5


def _train(model: nn.Module, data: ImageDataset, size: int, seed: int) -> float:
    """Seconds that the steps took."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(data.images), (STEPS, BATCH), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=STEPS)
    model.train()
    begin = time.perf_counter()
    for at in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(_images(data, at, size)), data.labels[at]).backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - begin


def _accuracy(model: nn.Module, data: ImageDataset, size: int) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for at in torch.arange(len(data.images)).split(250):
            right += int((model(_images(data, at, size)).argmax(1) == data.labels[at]).sum())
    return 100 * right / len(data.images)


def _compare_training(folder: str | None) -> None:
    train, test = (load_idx(folder, s) if folder else load_fashion_mnist_subset(s) for s in ("train", "test"))
    print(f"{STEPS} steps of {BATCH} images, {train.name}; per cent right of {len(test.images)} others, and seconds.")
    print("| network | seed | plain, NCHW | plain, NHWC | accelerated |\n|---|---|---|---|---|")
    for label, (make, size) in NETWORKS.items():
        for seed in range(3):
            torch.manual_seed(seed)
            plain = make()
            others = [copy.deepcopy(plain).to(memory_format=torch.channels_last) for _ in range(2)]
            dwsep.accelerate_(others[1])
            cells = []
            for model in (plain, *others):
                seconds = _train(model, train, size, seed)
                cells.append(f"{_accuracy(model, test, size):.2f} ({seconds:.1f} s)")
            print(f"| {label} | {seed} | {' | '.join(cells)} |", flush=True)


def _compare_photos(weights: str, folder: str) -> None:
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    names = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    prepare = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    fast = copy.deepcopy(network).eval()
    dwsep.accelerate_(fast)
    network.eval()
    print("| photo | plain | accelerated the same | largest difference of a logit |\n|---|---|---|---|")
    for path in sorted(Path(folder).iterdir()):
        image = torchvision.io.decode_image(str(path), torchvision.io.ImageReadMode.RGB)
        with torch.no_grad():
            before, after = (model(prepare(image)[None])[0] for model in (network, fast))
        best = [logits.topk(5).indices.tolist() for logits in (before, after)]
        words = ", ".join(names[i] for i in best[0])
        same = "yes" if best[0] == best[1] else ", ".join(names[i] for i in best[1])
        print(f"| {path.name} | {words} | {same} | {(before - after).abs().max():.1e} |")


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the full data set's IDX files")
    parser.add_argument("--weights", help="torchvision's mobilenet_v2-b0353104.pth")
    parser.add_argument("--photos", help="folder of JPEG and PNG files")
    options = parser.parse_args()
    if (options.weights is None) != (options.photos is None):
        parser.error("--weights and --photos go together")
    _compare_training(options.data)
    if options.weights:
        print()
        _compare_photos(options.weights, options.photos)


if __name__ == "__main__":
    main()
