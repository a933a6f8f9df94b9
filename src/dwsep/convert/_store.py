"""Moments of the layers' inputs, gathered for as many layers at a time as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dwsep.convert._gram import PatchMoments
from dwsep.convert._runs import Batch, Seen, evaluating, hooked
from dwsep.convert.fit import Moments
from dwsep.nn._separated import geometry_of

_LIMIT_BYTES = 1 << 30
_LARGEST_BYTES = 2 << 30  # of a single layer: above, it is fitted to its weight
_PATCHES_PER_ELEMENT = 4
_FEWEST_PATCHES = 4096


class MomentStore:
    """Moments by layer. Ask for layers in the order in which they were given: each group costs a run over the data."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        seen: dict[nn.Module, Seen],
        on_batch: Callable[[int, int], None],
        limit_bytes: int = _LIMIT_BYTES,
    ) -> None:
        self.model, self.batches, self.seen, self.on_batch = model, batches, seen, on_batch
        self.groups: list[list[Any]] = []
        used = limit_bytes
        for layer in seen:
            size = _bytes(layer)
            if size > _LARGEST_BYTES:
                continue
            if used + size > limit_bytes:
                self.groups.append([])
                used = 0
            self.groups[-1].append(layer)
            used += size
        self.held: dict[nn.Module, PatchMoments] = {}

    def get(self, layer: nn.Module) -> Moments | None:
        """A layer's moments; ``None`` where they would take too much memory."""
        if layer not in self.held:
            group = next((group for group in self.groups if layer in group), None)
            if group is None:
                return None
            self.held = {}  # before the next group's are made
            self.held = self._gather(group)
        return self.held[layer].moments()

    def _gather(self, group: list[Any]) -> dict[nn.Module, PatchMoments]:
        sums: dict[nn.Module, PatchMoments] = {
            layer: PatchMoments(layer.in_channels, geometry_of(layer), layer.padding_mode, _sums_device(layer))
            for layer in group
        }

        def before(module: Any, args: Batch) -> None:
            one = sums[module]
            calls = len(self.seen[module].calls) * len(self.batches)
            wanted = max(_FEWEST_PATCHES, _PATCHES_PER_ELEMENT * one.size)
            one.add(args[0], at_most=math.ceil(wanted / calls))

        with hooked(layer.register_forward_pre_hook(before) for layer in group), evaluating(self.model):
            for done, batch in enumerate(self.batches):
                self.model(*batch)
                self.on_batch(done + 1, len(self.batches))
        return sums


def _bytes(layer: Any) -> int:
    return 8 * (layer.weight[0].numel()) ** 2


def _sums_device(layer: Any) -> torch.device:
    device = layer.weight.device
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64
