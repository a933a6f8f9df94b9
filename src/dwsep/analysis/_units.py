"""Which layers each timed part of a network's run stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from dwsep.analysis._accelerated import FusedStep
from dwsep.analysis._timeline import Mark, Run
from dwsep.analysis.cost import LayerCost, ModelCost


@dataclass
class Unit:
    """What is timed as one.

    Attributes:
        layers: Numbers of the layers whose work it does; empty where it is nothing but Python's own time.
        mark: The number of its mark in a timed run; None for the gap before mark ``gap``.
        gap: The number of its gap; None for a mark.
        step: The step of an accelerated network that it is.
    """

    layers: list[int] = field(default_factory=list)
    mark: int | None = None
    gap: int | None = None
    step: FusedStep | None = None

    def seconds(self, run: Run) -> float:
        """Its seconds in a run, forward and backward."""
        if self.mark is not None:
            return run.spent(self.mark)
        assert self.gap is not None
        return run.gap(self.gap)


def units_of(
    cost: ModelCost, run: Run, parts: Mapping[str, nn.Module], steps: Mapping[str, Sequence[FusedStep]]
) -> list[Unit]:
    """Assigns every layer to the mark or gap of a run in which its work was done.

    Args:
        cost: Of the network, counted layer by layer.
        run: A timed run of the same network.
        parts: By name, the modules that were timed.
        steps: By name of a part, the steps of an accelerated one.

    Raises:
        RuntimeError: The timed run called other modules than the one which counted.
    """
    layers = cost.layers
    begins = iter([call for call in cost.calls if call[0] in parts])
    owners = [_owner(layer, parts) for layer in layers]
    units: list[Unit] = []
    place = 0
    number = 0
    while number < len(run.marks):
        name = run.marks[number].part[0]
        last = number
        while _continues(run.marks, last, name):
            last += 1
        gap = Unit(gap=number)
        units.append(gap)
        call = next(begins, None)
        if call is None or call[0] != name:
            raise RuntimeError(
                f"the network's forward takes another way each time: it called {name!r} in place of {call}"
            )
        while place < len(layers) and owners[place] is None and layers[place].began < call[1]:
            gap.layers.append(place)
            place += 1
        taken = place
        while taken < len(layers) and owners[taken] == call:
            taken += 1
        own = list(range(place, taken))
        place = taken
        if run.marks[number].part[1] < 0:
            units.append(Unit(own, mark=number))
        else:
            units.extend(_stepwise(own, layers, run.marks, number, last, steps[name], parts[name], name))
        number = last + 1
    units.append(Unit(list(range(place, len(layers))), gap=len(run.marks)))
    return units


def _owner(layer: LayerCost, parts: Mapping[str, nn.Module]) -> tuple[str, int] | None:
    """The call of a timed part in which a layer ran."""
    return next((call for call in layer.calls if call[0] in parts), None)


def _continues(marks: Sequence[Mark], number: int, name: str) -> bool:
    """Whether the next mark is a further step of the same call of an accelerated module."""
    if number + 1 >= len(marks):
        return False
    step, following = marks[number].part[1], marks[number + 1].part
    return following[0] == name and step >= 0 and following[1] == step + 1


def _stepwise(
    own: Sequence[int], layers: Sequence[LayerCost], marks: Sequence[Mark], first: int, last: int,
    steps: Sequence[FusedStep], root: nn.Module, name: str,
) -> list[Unit]:  # fmt: skip
    """A unit for each step of an accelerated module, and those layers which no step names with the one before them."""
    names = {id(module): f"{name}.{key}".strip(".") if key else name for key, module in root.named_modules()}
    units = [Unit(mark=number, step=steps[marks[number].part[1]]) for number in range(first, last + 1)]
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
    return units
