"""Which layers each timed part of a network's run stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dwsep.accelerate.stepwise import FusedStep
from dwsep.analysis._timeline import Run
from dwsep.analysis.cost import LayerCost, ModelCost


@dataclass
class Unit:
    """What is timed as one.

    Attributes:
        layers: Numbers of the layers whose work it does; empty where it is nothing but Python's own time.
        mark: The number of its mark in a run step by step; None for a gap.
        place: The number of the mark or gap in a run as the network runs.
        share: Its part of that mark: a call of an accelerated network is many steps.
        step: The step of an accelerated network that it is.
    """

    layers: list[int] = field(default_factory=list)
    mark: int | None = None
    place: int = 0
    share: float = 1.0
    step: FusedStep | None = None

    def seconds(self, run: Run) -> float:
        """Its seconds in a run as the network runs, forward and backward."""
        return run.gap(self.place) if self.mark is None else self.share * run.spent(self.place)


def units_of(cost: ModelCost, run: Run, steps: Run, parts: Mapping[str, tuple[nn.Module, Any]]) -> list[Unit]:
    """Assigns every layer to the mark or gap of a run in which its work was done.

    Args:
        cost: Of the network, counted layer by layer.
        run: A timed run of the same network.
        steps: The same step by step; the same run where nothing is accelerated.
        parts: By name, the modules that were timed.

    Raises:
        RuntimeError: The timed run called other modules than the one which counted.
    """
    layers = cost.layers
    begins = iter([call for call in cost.calls if call[0] in parts])
    owners = [_owner(layer, parts) for layer in layers]
    places = {(mark.run, mark.number): place for place, mark in enumerate(run.marks)}
    units: list[Unit] = []
    place = 0
    number = 0
    while number < len(steps.marks):
        first = steps.marks[number]
        name = first.name
        last = number
        while last + 1 < len(steps.marks) and steps.marks[last + 1].run == first.run:
            last += 1
        begin = places.get((first.run, -1 if first.step is None else first.step.call))
        call = next(begins, None)
        if call is None or call[0] != name or begin is None:
            raise RuntimeError(
                f"the network's forward takes another way each time: it called {name!r} in place of {call}"
            )
        gap = Unit(place=begin)
        units.append(gap)
        while place < len(layers) and owners[place] is None and layers[place].began < call[1]:
            gap.layers.append(place)
            place += 1
        taken = place
        while taken < len(layers) and owners[taken] == call:
            taken += 1
        own = list(range(place, taken))
        place = taken
        made = []
        for mark in range(number, last + 1):
            step = steps.marks[mark].step
            made.append(Unit(mark=mark, place=places[first.run, -1 if step is None else step.call], step=step))
        if first.step is None:
            made[0].layers = own
        else:
            _assign(own, layers, made, parts[name][0], name)
        units += made
        number = last + 1
    units.append(Unit(list(range(place, len(layers))), place=len(run.marks)))
    return units


def _owner(layer: LayerCost, parts: Mapping[str, Any]) -> tuple[str, int] | None:
    """The call of a timed part in which a layer ran."""
    return next((call for call in layer.calls if call[0] in parts), None)


def _assign(own: Sequence[int], layers: Sequence[LayerCost], units: list[Unit], root: nn.Module, name: str) -> None:
    """Gives each step of an accelerated module its layers, and those which no step names with the one before them."""
    names = {id(module): f"{name}.{key}".strip(".") if key else name for key, module in root.named_modules()}
    holder: dict[int, int] = {}
    for position, unit in enumerate(units):
        assert unit.step is not None
        wanted = {names[id(module)] for module in unit.step.modules if id(module) in names}
        for index in own:
            if index not in holder and any(call[0] in wanted for call in layers[index].calls):
                holder[index] = position
    current = 0
    for index in own:
        current = holder.get(index, current)
        units[current].layers.append(index)
