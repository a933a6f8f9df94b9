"""Labels as text: their classes, their indices, and a division that keeps the classes' shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_names_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes among labels: numbers in their order, other names in alphabetical order.

    Example:
        >>> class_names_of(["10", "9", "10"]), class_names_of(["dog", "cat"])
        (('9', '10'), ('cat', 'dog'))
    """
    names = set(labels)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def indices_of(labels: Sequence[str], class_names: Sequence[str], source: str) -> Tensor:
    """The classes' indices, (N,), int64.

    Args:
        labels: One per example.
        class_names: The classes that there are.
        source: Where the labels come from, for the message.

    Raises:
        ValueError: If a label is none of the classes; the message names it and says how many have it.
    """
    index = {name: position for position, name in enumerate(class_names)}
    for label in labels:
        if label not in index:
            shown = ", ".join(map(repr, class_names[:10])) + (", ..." if len(class_names) > 10 else "")
            count = sum(other == label for other in labels)
            raise ValueError(
                f"{source}: unknown label {label!r}; the classes are {shown}; examples of it: {count} of {len(labels)}"
            )
    return torch.tensor([index[label] for label in labels], dtype=torch.int64)


def divide(labels: Sequence[str], test_fraction: float, seed: int, source: str) -> dict[str, list[int]]:
    """Divide examples into a training and a test split, every class by the same share, at least one on either side.

    Args:
        labels: One per example.
        test_fraction: Share that goes to the test split.
        seed: Decides the division.
        source: Where the labels come from, for the message.

    Returns:
        Positions by split, ascending.

    Raises:
        ValueError: If the fraction is out of range or a class has a single example.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    parts: dict[str, list[int]] = {"train": [], "test": []}
    for index, name in enumerate(class_names_of(labels)):
        places = [place for place, label in enumerate(labels) if label == name]
        if len(places) < 2:
            raise ValueError(f"{source}: class {name!r} has one example; it needs two, one to train and one to test")
        count = min(max(1, round(len(places) * test_fraction)), len(places) - 1)
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed + index)).tolist()
        parts["test"] += [places[i] for i in order[:count]]
        parts["train"] += [places[i] for i in order[count:]]
    return {name: sorted(chosen) for name, chosen in parts.items()}
