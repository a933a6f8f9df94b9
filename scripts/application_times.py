"""What the networks of docs/results/applications.md cost: multiply-adds, and the times of a training step and of
inference, separable and dense, accelerated and not, taking turns.

    python scripts/application_times.py
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.analysis import count
from dwsep.analysis.allocator import keep_freed_memory

# Name, network, options, input of a training step, input of an inference.
CASES = (
    ("Fashion-MNIST, mobilenet_v1 0.29", "mobilenet_v1",
     {"in_channels": 1, "width_multiplier": 0.29, "stem": "small", "residual": True},
     (64, 1, 28, 28), (1, 1, 28, 28)),
    ("earth, deeplab_v3_plus 0.5", "deeplab_v3_plus", {"width_multiplier": 0.5}, (8, 3, 256, 256), (1, 3, 256, 256)),
    ("brain, deeplab_v3_plus 0.5", "deeplab_v3_plus", {"in_channels": 1, "width_multiplier": 0.5},
     (8, 1, 233, 197), (1, 1, 233, 197)),
    ("movies, text_separable", "text_separable", {"vocabulary_size": 6000}, (32, 24), (1, 24)),
    ("movies, text_light", "text_light", {"vocabulary_size": 6000}, (32, 24), (1, 24)),
    ("OSULeaf, series_separable", "series_separable", {"in_channels": 1}, (16, 1, 427), (1, 1, 427)),
)  # fmt: skip
WAYS = {"dense": (True, False), "separable": (False, False), "accelerated": (False, True)}


def example(shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 2:
        return torch.randint(1, 6000, shape)
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def make(network: str, options: dict, dense: bool, fast: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = networks.create(network, num_classes=3, dense=dense, **options)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if fast:
        accelerate_(model)
    return model


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def measure(case: tuple, rounds: int) -> None:
    name, network, options, train_shape, shape = case
    models = {way: make(network, options, *how) for way, how in WAYS.items()}
    x, one = example(train_shape), example(shape)
    out = models["dense"](x)
    y = torch.randint(0, 3, (out.shape[0], *out.shape[2:]))
    optimizers = {way: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9, fused=True) for way, m in models.items()}
    steps: dict[str, list[float]] = {way: [] for way in models}
    for index in range(rounds + 2):
        for way, model in models.items():
            start = time.perf_counter()
            step(model, optimizers[way], x, y)
            if index >= 2:
                steps[way].append(time.perf_counter() - start)
    calls: dict[str, list[float]] = {way: [] for way in models}
    for model in models.values():
        model.eval()
    with torch.no_grad():
        for index in range(5 * rounds + 5):
            for way, model in models.items():
                start = time.perf_counter()
                model(one)
                if index >= 5:
                    calls[way].append(time.perf_counter() - start)
    for way, model in models.items():
        cost = count(model, one)
        best = [1e3 * min(times[way]) for times in (steps, calls)]
        sizes = f"{cost.parameters / 1e6:.3f} M | {cost.macs / 1e6:.2f} M"
        print(f"| {name} | {way} | {sizes} | {best[0]:.2f} | {best[1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="the best of which counts")
    parser.add_argument("--case", default="", help="part of a name; all if none is given")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    print("| network | way | parameters | macs of one input | ms per training step | ms at batch 1 |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        if arguments.case in case[0]:
            measure(case, arguments.rounds)


if __name__ == "__main__":
    main()
