"""Which form each layer takes, under each kind of budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dwsep.analysis.report import format_count
from dwsep.convert import fit as fitting
from dwsep.convert._knapsack import choose
from dwsep.convert._options import Clock, Layer, Option
from dwsep.convert._runs import OutputError, replaced_weights
from dwsep.convert._store import MomentStore
from dwsep.errors import ArgumentError

Choice = dict[Layer, Option | None]
_PROBE = 0.2  # relative error of a layer at which its weight in the network's error is measured
_TRIES = 6


def fit_layer(layer: Layer, option: Option, store: MomentStore | None, sweeps: int) -> fitting.Factors:
    """A layer's factors in a form, kept for the next time."""
    if (option, sweeps) not in layer.factors:
        moments = None if store is None else store.get(layer.conv)
        layer.factors[option, sweeps] = fitting.fit(
            layer.conv.weight, option.rank, order=option.order, moments=moments, sweeps=sweeps
        )
    return layer.factors[option, sweeps]


def estimate_errors(layers: Sequence[Layer], store: MomentStore | None, on_layer: Callable[[int, int], None]) -> None:
    """Fill every layer's errors by form, before any sweep."""
    for done, layer in enumerate(layers):
        layer.errors[None] = 0.0
        moments = None if store is None else store.get(layer.conv)
        weight = layer.conv.weight
        for order in {option.order for option in layer.options}:
            options = [option for option in layer.options if option.order == order]
            if moments is None:
                errors = fitting.tails(weight, order).tolist()
            elif order == "depthwise_first":
                errors = fitting.output_tails(weight, moments, max(option.rank for option in options)).tolist()
            else:
                fits = {o.rank: fitting.fit(weight, o.rank, order=order, moments=moments, sweeps=0) for o in options}
                errors = {rank: factors.output_error or 0.0 for rank, factors in fits.items()}
            layer.errors |= {option: errors[option.rank] for option in options}
        on_layer(done + 1, len(layers))


def measure_sensitivities(
    layers: Sequence[Layer],
    store: MomentStore | None,
    error: OutputError,
    on_layer: Callable[[int, int], None],
) -> None:
    """Find how much of the network's error each layer's error makes, by giving one layer at a time an error."""
    for done, layer in enumerate(layers):
        probe = min(layer.options, key=lambda option: abs(layer.errors[option] - _PROBE))
        factors = fitting.fit(
            layer.conv.weight,
            probe.rank,
            order=probe.order,
            moments=None if store is None else store.get(layer.conv),
            sweeps=0,
        )
        with replaced_weights([change(layer, factors)]):
            made = error.measure()
        own = layer.errors[probe]
        layer.sensitivity = (made / own) ** 2 if own > 1e-9 else 0.0
        on_layer(done + 1, len(layers))


def change(layer: Layer, factors: fitting.Factors) -> tuple[Any, Tensor, Tensor]:
    """What stands for a layer with these factors: the dense layer with another weight and a shift."""
    return layer.conv, fitting.dense(factors), factors.shift


def losses(layer: Layer, forms: Sequence[Option | None]) -> list[float]:
    """What each form adds to the square of the network's relative error."""
    return [layer.sensitivity * layer.errors[form] ** 2 for form in forms]


def _forms(layer: Layer) -> list[Option | None]:
    return list(layer.macs)


def _pick(layers: Sequence[Layer], numbers: Sequence[int]) -> Choice:
    return {layer: _forms(layer)[number] for layer, number in zip(layers, numbers, strict=True)}


def by_macs(layers: Sequence[Layer], total: int, limit: float, tried: Callable[[Choice], float]) -> Choice:
    """The least error within a number of multiply-adds of the network, whose dense number is ``total``.

    The layers' errors add up to the network's only nearly: a few choices that are likely good are tried.
    """
    fixed = total - sum(layer.macs[None] for layer in layers)
    weights = [[float(layer.macs[form]) for form in _forms(layer)] for layer in layers]
    choices = []
    for values in (
        [losses(layer, _forms(layer)) for layer in layers],
        [[layer.errors[form] ** 2 for form in _forms(layer)] for layer in layers],
    ):
        numbers = choose(values, weights, limit - fixed)
        if numbers is None:
            least = fixed + sum(map(min, weights))
            raise ArgumentError(
                f"macs cannot be met: {format_count(limit)} wanted, {format_count(least)} (a share of "
                f"{least / total:.3f}) is the least that the layers allow"
            )
        choices.append(_pick(layers, numbers))
    choices.append(_uniform(layers, limit - fixed))
    several = [choice for number, choice in enumerate(choices) if choice and choice not in choices[:number]]
    return several[0] if len(several) == 1 else min(several, key=tried)


def _uniform(layers: Sequence[Layer], limit: float) -> Choice | None:
    """The largest rank for all layers within the limit; layers on which it does not pay stay dense."""
    best: Choice | None = None
    for rank in sorted({option.rank for layer in layers for option in layer.options}):
        choice: Choice = {}
        for layer in layers:
            forms = [option for option in layer.options if option.rank == rank]
            choice[layer] = min(forms, key=lambda form, layer=layer: layer.errors[form], default=None)
        if sum(layer.macs[form] for layer, form in choice.items()) <= limit:
            best = choice
    return best


def by_error(layers: Sequence[Layer], budget: float, tried: Callable[[Choice], float]) -> Choice:
    """The fewest multiply-adds whose measured error of the network's output keeps the budget.

    The sum of the layers' errors predicts the network's; where it is off, the limit on the sum is moved and the
    choice made again, a few times.
    """
    costs = [[float(layer.macs[form]) for form in _forms(layer)] for layer in layers]
    best: Choice = dict.fromkeys(layers)
    target, fewest = budget**2, float("inf")
    low, high = 0.0, float("inf")  # targets that kept the budget and that did not
    for _ in range(_TRIES):
        numbers = choose(costs, [losses(layer, _forms(layer)) for layer in layers], target)
        assert numbers is not None  # dense loses nothing
        choice = _pick(layers, numbers)
        macs = sum(layer.macs[form] for layer, form in choice.items())
        if not any(choice.values()):
            low = max(low, target)
            if high == float("inf") or high <= 1.1 * low:
                break
            target = (low * high) ** 0.5
            continue
        made = tried(choice)
        if made <= budget and macs < fewest:
            best, fewest = choice, macs
        if 0.95 * budget <= made <= budget:
            break
        low, high = (max(low, target), high) if made <= budget else (low, min(high, target))
        target *= min(max((0.98 * budget / max(made, 1e-12)) ** 2, 1 / 16), 16)
        if not low < target < high:
            target = (low * high) ** 0.5
    return best


def by_latency(
    layers: Sequence[Layer],
    share: float | None,
    seconds: float | None,
    timed: Callable[[Choice], tuple[float, float]],
) -> Choice:
    """The least error within a measured time of the network.

    Args:
        layers: with their seconds by form.
        share: of the dense network's time, or ``None``.
        seconds: of a call, where ``share`` is ``None``.
        timed: measures the dense network and one with a choice, in turns: seconds of both.
    """
    values = [losses(layer, _forms(layer)) for layer in layers]
    weights = [[layer.seconds[form] for form in _forms(layer)] for layer in layers]
    fastest = tuple(row.index(min(row)) for row in weights)
    dense, _ = timed(dict.fromkeys(layers))
    allowed = (
        (dense * share if share is not None else seconds or 0.0) - dense + sum(layer.seconds[None] for layer in layers)
    )
    low, high = 0.0, float("inf")  # of the layers' own time: what kept the limit and what did not
    best: tuple[bool, float, Choice] | None = None
    for _ in range(_TRIES):
        numbers = choose(values, weights, allowed) or fastest
        choice = _pick(layers, numbers)
        alone = sum(layer.seconds[form] for layer, form in choice.items())
        dense, made = timed(choice)
        limit = dense * share if share is not None else seconds or 0.0
        over = made > limit
        # The nearest to the limit from below; failing that, the nearest.
        if best is None or (over, abs(made - limit) / limit) < best[:2]:
            best = over, abs(made - limit) / limit, choice
        if 0.95 * limit <= made <= limit or (over and numbers == fastest) or not (over or any(choice.values())):
            break
        low, high = (low, min(high, alone)) if over else (max(low, alone), high)
        allowed = alone + 0.98 * limit - made  # the layers' times add up to the network's only nearly
        if not low < allowed < high:
            allowed = (low + high) / 2
    assert best is not None
    over, miss, choice = best
    if over and miss > 0.1:
        if share is not None:
            wanted, takes = f"latency={share}", f"{share * (1 + miss):.3g} of the dense network's time"
        else:
            made = (seconds or 0.0) * (1 + miss)
            wanted, takes = f"latency_seconds={seconds} ({1e3 * (seconds or 0.0):.3g} ms)", f"{1e3 * made:.3g} ms"
        raise ArgumentError(
            f"{wanted} cannot be met: the fastest choice found takes {takes}, measured; the layers that may be "
            "separated are too small a part of its time, or separable forms do not pay on them"
        )
    return choice


def time_options(layers: Sequence[Layer], clock: Clock, on_layer: Callable[[int, int], None]) -> None:
    """Measure the layers' forms, of each order up to the first rank that takes longer than dense, and drop the rest."""
    for done, layer in enumerate(layers):
        layer.time([None], clock)
        paying: set[Option] = set()
        stopped: set[str] = set()
        for option in sorted(layer.options, key=lambda option: option.rank):
            if option.order not in stopped:
                layer.time([option], clock)
                if layer.seconds[option] < layer.seconds[None]:
                    paying.add(option)
                else:
                    stopped.add(option.order)
        layer.keep(paying.__contains__)
        on_layer(done + 1, len(layers))
