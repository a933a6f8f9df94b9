"""Random number generators: seeding, and keeping their state in a checkpoint."""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch.

    Args:
        seed: In [0, 2**32).

    Example:
        >>> seed_everything(0)
        >>> first = torch.rand(1)
        >>> seed_everything(0)
        >>> bool(first == torch.rand(1))
        True
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the generator of PyTorch that a step on ``device`` draws from.

    ``torch.manual_seed`` seeds those of all devices, and takes 0.2 ms to remember where it was called from for a CUDA
    that is never used: on a CPU that is more than a percent of a small network's step.

    Args:
        seed: In [0, 2**64).
        device: Where the step runs.

    Example:
        >>> seed_step(0, torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> torch.manual_seed(0) is torch.default_generator
        True
        >>> bool(first == torch.rand(1))
        True
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def capture_rng() -> tuple[dict[str, Tensor], str]:
    """Take the state of the three global generators.

    Returns:
        Tensors, and the remaining numbers as JSON.
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "rng.torch": torch.get_rng_state(),
        "rng.python": torch.tensor(words, dtype=torch.int64),
        "rng.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    rest = {"python": [version, gauss], "numpy": [int(position), int(has_gauss), float(cached)]}
    return tensors, json.dumps(rest)


def restore_rng(tensors: dict[str, Tensor], rest: str) -> None:
    """Put the three global generators back to a state from :func:`capture_rng`.

    Args:
        tensors: As captured.
        rest: As captured.
    """
    numbers = json.loads(rest)
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["rng.python"].tolist()), gauss))
    position, has_gauss, cached = numbers["numpy"]
    keys = tensors["rng.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch.set_rng_state(tensors["rng.torch"])
