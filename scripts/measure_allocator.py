"""Measures what the memory allocator costs a training step of a network from torchvision, in plain PyTorch.

python scripts/measure_allocator.py mobilenet_v2 --batch 32 --keep
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
import torchvision

from dwsep.analysis import keep_freed_memory
from dwsep.analysis.machine import describe_machine
from dwsep.analysis.report import format_allocator

_SETTLING_STEPS = 4


def main() -> None:
    """Prints the medians of time and page faults, and the largest size of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="have glibc keep freed memory")
    options = parser.parse_args()
    if options.keep:
        reason = keep_freed_memory()
        if reason is not None:
            parser.error(reason)

    torch.manual_seed(0)
    model = torchvision.models.get_model(options.network).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(options.batch, 3, 224, 224).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch,))
    records = []
    for _ in range(_SETTLING_STEPS + options.steps):
        faults, started = [_faults()], time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        faults.append(_faults())
        optimizer.zero_grad()
        loss.backward()
        faults.append(_faults())
        optimizer.step()
        del loss
        seconds = time.perf_counter() - started
        records.append((1000 * seconds, faults[1] - faults[0], faults[2] - faults[1], _faults() - faults[0]))
    step, forward, backward, whole = (statistics.median(column) for column in zip(*records[_SETTLING_STEPS:]))
    print(
        f"{format_allocator(describe_machine())}: {options.network}, batch {options.batch}: step {step:.0f} ms; "
        f"page faults: forward {forward:.0f}, backward {backward:.0f}, step {whole:.0f}; "
        f"largest size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB"
    )


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
