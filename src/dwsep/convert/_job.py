"""One separation: the network is measured, a form is chosen for every layer, and the layers take it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dwsep.analysis import count, measure
from dwsep.analysis.report import format_count
from dwsep.convert import _runs, _select, _surgery
from dwsep.convert._config import SeparateConfig
from dwsep.convert._find import Lines, left
from dwsep.convert._modules import separable
from dwsep.convert._norms import NormCorrection
from dwsep.convert._options import Clock, Layer, Option
from dwsep.convert._report import SeparatedLayer, SeparationReport
from dwsep.convert._store import MomentStore
from dwsep.errors import ArgumentError
from dwsep.nn._separated import become, empty_separable, factors_of, state_of, successor

Progress = Callable[[str, int, int], None]


class Job:
    """One call of ``separate_``: the network, the data, and what was measured so far."""

    def __init__(
        self,
        model: nn.Module,
        config: SeparateConfig,
        arguments: _runs.Batch,
        batches: Sequence[_runs.Batch] | None,
        on_progress: Progress,
    ) -> None:
        self.model, self.config, self.arguments, self.batches = model, config, arguments, batches
        self.data: Sequence[_runs.Batch] = [arguments] if batches is None else batches
        self.on_progress = on_progress
        self.clock = Clock()
        self.store: MomentStore | None = None
        self.error = _runs.OutputError(model, self.data)
        self.macs = count(model, arguments).macs
        self.parameters = _parameters(model)

    @functools.cached_property
    def norms(self) -> NormCorrection:
        """The norms as they are in the dense network."""
        return NormCorrection(self.model, self.data)

    def _report(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.on_progress(what, done, total)

    def choose(self, convs: Mapping[str, Any], lines: Lines) -> _select.Choice:
        """A form for every layer that can take one; a line for each that cannot."""
        seen = _runs.observe(self.model, self.arguments, convs.values())
        layers = []
        for name, conv in convs.items():
            if not seen[conv].calls:
                lines[name] = left(name, conv, "the network did not call it")
                continue
            layer = Layer(name, conv, seen[conv])
            layer.count_macs(self._orders(conv))
            layers.append(layer)
        if not layers:
            self._check_met_by_dense()
            return {}
        if self.batches is not None:
            called = {layer.conv: layer.seen for layer in layers}
            self.store = MomentStore(self.model, self.batches, called, self._report("moments of the inputs"))
        if self.config.rank is not None:
            return {layer: _fixed(layer, self.config) for layer in layers}
        return self._within_budget(layers, lines)

    def _orders(self, conv: Any) -> tuple[str, ...]:
        if self.config.order == "auto" and (conv.in_channels <= conv.out_channels or max(conv.stride) > 1):
            # Mixing before the window pays where it makes channels fewer, and costs where it runs on a larger image.
            return ("depthwise_first",)
        return self.config.orders

    def _within_budget(self, layers: list[Layer], lines: Lines) -> _select.Choice:
        config, (name, value) = self.config, self.config.budget
        for layer in layers:
            dense = layer.macs[None]
            layer.keep(
                lambda o, layer=layer, dense=dense: layer.macs[o] < dense and o.rank <= (config.max_rank or o.rank)
            )
        layers = self._paying(layers, lines, "no rank does fewer macs")
        if name.startswith("latency"):
            _select.time_options(layers, self.clock, self._report("timing layers"))
            layers = self._paying(layers, lines, "no rank is faster")
        if not layers:
            self._check_met_by_dense()
            return {}
        _select.estimate_errors(layers, self.store, self._report("errors by rank"))
        few = _runs.OutputError(self.model, [_first(next(iter(self.data)))])
        _select.measure_sensitivities(layers, self.store, few, self._report("sensitivities"))
        if name == "macs":
            # Which of a few choices is the best shows before the sweeps, which are most of the work.
            return _select.by_macs(layers, self.macs, self._macs_limit(), functools.partial(self._tried, sweeps=0))
        if name == "error":
            return _select.by_error(layers, value, functools.partial(self._tried, sweeps=config.sweeps))
        return _select.by_latency(layers, config.latency, config.latency_seconds, self._timed)

    def _check_met_by_dense(self) -> None:
        """Where no layer may become separable, a budget below what the dense network costs cannot be met.

        Raises:
            ArgumentError: such a budget.
        """
        name, value = self.config.budget
        if name == "macs" and self._macs_limit() < self.macs:
            raise ArgumentError(
                f"macs cannot be met: {format_count(self._macs_limit())} wanted, and no layer of the model, which does "
                f"{format_count(self.macs)}, does fewer as a separable one"
            )
        if name == "latency":
            raise ArgumentError(f"latency={value} cannot be met: no layer of the model is faster as a separable one")
        if name == "latency_seconds" and (dense := self._timed({})[0]) > value:
            raise ArgumentError(
                f"latency_seconds={value} ({1e3 * value:.3g} ms) cannot be met: the model takes {1e3 * dense:.3g} ms, "
                "and no layer of it is faster as a separable one"
            )

    def _macs_limit(self) -> float:
        value = self.config.budget[1]
        return value * self.macs if value <= 1 else value

    def _paying(self, layers: list[Layer], lines: Lines, reason: str) -> list[Layer]:
        for layer in layers:
            if not layer.options:
                lines[layer.name] = left(layer.name, layer.conv, reason, layer)
        return [layer for layer in layers if layer.options]

    def _tried(self, choice: _select.Choice, *, sweeps: int) -> float:
        """Error of the network's output with a choice, by weights that stand for the layers; all is put back."""
        changes = []
        for done, (layer, form) in enumerate(choice.items()):
            if form is not None:
                changes.append(_select.change(layer, _select.fit_layer(layer, form, self.store, sweeps)))
            self.on_progress("trying ranks", done + 1, len(choice))
        if self.batches is None:
            with _runs.replaced_weights(changes):
                return self.error.measure()
        with self.norms.undone(), _runs.replaced_weights(changes):
            self.norms.apply()
            return self.error.measure()

    def _timed(self, choice: _select.Choice) -> tuple[float, float]:
        """Seconds of the dense network and of one with a choice, whose weights are those it was made with."""
        swaps = []
        for layer, form in choice.items():
            if form is not None:
                bias = None if layer.conv.bias is None else nn.Parameter(layer.conv.bias.detach().clone())
                new = empty_separable(layer.conv, form.order, form.rank, bias)
                swaps.append((layer.conv, state_of(layer.conv), successor(layer.conv, new)))
        return _time_both(self.model, self.arguments, swaps)

    def commit(self, choice: _select.Choice, lines: Lines, optimizers: Sequence[Any]) -> SeparationReport:
        """Fit, change the model, and measure."""
        chosen = {layer: form for layer, form in choice.items() if form is not None}
        fitted = {}
        for done, (layer, form) in enumerate(chosen.items()):
            fitted[layer] = _select.fit_layer(layer, form, self.store, self.config.sweeps)
            self.on_progress("fitting", done + 1, len(chosen))
        for layer, form in choice.items():
            if form is None:
                lines[layer.name] = left(layer.name, layer.conv, _not_chosen(self.config, bool(chosen)), layer)
            elif self.config.measure_layers:
                layer.time([None, form], self.clock)
        self.store = None  # frees the moments before the weights are doubled
        norms = self.norms if self.batches is not None and chosen else None
        swaps, successors = [], {}
        for layer, factors in fitted.items():
            what = layer.what
            bias, made = self._bias(layer, factors)
            old, weight = state_of(layer.conv), layer.conv.weight
            new = separable(layer.conv, factors, bias)
            successors[weight] = [*factors_of(new), *([bias] if made and bias is not None else [])]
            swaps.append((layer.conv, old, successor(layer.conv, new)))
            lines[layer.name] = self._line(layer, what, factors, bias is not None)
        for module, _, new in swaps:
            become(module, new)
        if norms is not None:
            norms.apply()
        _surgery.rebind(optimizers, successors)
        seconds: tuple[float | None, float | None] = (None, None)
        if self.config.measure_layers:
            seconds = _time_both(self.model, self.arguments, swaps)
        return SeparationReport(
            tuple(line for line in lines.values() if line is not None),
            self.config.budget,
            self.macs,
            count(self.model, self.arguments).macs,
            self.parameters,
            _parameters(self.model),
            *seconds,
            self.error.measure(),
        )

    def _bias(self, layer: Layer, factors: Any) -> tuple[nn.Parameter | None, bool]:
        """The layer's bias with the mean error put back, and whether it is a new parameter."""
        old = layer.conv.bias
        if old is not None:
            with torch.no_grad():
                old += factors.shift
            return old, False
        if self.batches is None or layer.seen.norm is not None:
            return None, False
        return nn.Parameter(factors.shift.clone(), requires_grad=layer.conv.weight.requires_grad), True

    def _line(self, layer: Layer, what: str, factors: Any, has_bias: bool) -> SeparatedLayer:
        form = Option(factors.order, factors.rank)
        return SeparatedLayer(
            layer.name,
            what,
            "separated",
            "",
            factors.order,
            factors.rank,
            has_bias,
            layer.macs[None],
            layer.macs[form],
            layer.seconds.get(None) if self.config.measure_layers else None,
            layer.seconds.get(form) if self.config.measure_layers else None,
            factors.weight_error,
            factors.output_error,
        )


def _not_chosen(config: SeparateConfig, others: bool) -> str:
    """Why a layer that could have become separable was left dense."""
    if config.budget[0] != "error":
        return "the budget is kept without it"
    return "the error budget saves more elsewhere" if others else "no rank keeps the error budget"


def _fixed(layer: Layer, config: SeparateConfig) -> Option:
    order = "depthwise_first" if config.order == "auto" else config.order
    ranks = [option.rank for option in layer.options if option.order == order]
    return Option(order, min(config.rank or 1, max(ranks)))


def _first(batch: _runs.Batch, at_most: int = 16) -> _runs.Batch:
    """The beginning of a batch, where its tensors agree on what is one."""
    sizes = {len(entry) for entry in batch if isinstance(entry, torch.Tensor) and entry.dim() > 2}
    if len(sizes) != 1 or max(sizes) <= at_most:
        return batch
    return tuple(e[:at_most] if isinstance(e, torch.Tensor) and e.dim() and len(e) in sizes else e for e in batch)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _time_both(model: nn.Module, arguments: _runs.Batch, swaps: Sequence[Any]) -> tuple[float, float]:
    """Seconds of a call with the first and with the second state of some modules, in turns; both stay as they are."""
    now = [state_of(module) for module, _, _ in swaps]
    state = None

    def run(wanted: int) -> Callable[[], object]:
        def call() -> None:
            nonlocal state
            if state != wanted:  # never in a timed call: each turn begins with one that is not
                for module, *states in swaps:
                    become(module, states[wanted])
                state = wanted
            model(*arguments)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return call

    with _runs.evaluating(model):
        for _, *states in swaps:
            for one in states:
                one.content["training"] = False
        try:
            times = measure({"dense": run(0), "separable": run(1)}, rounds=9, max_seconds=8.0)
        finally:
            for (module, *_), one in zip(swaps, now, strict=True):
                become(module, one)
    return times["dense"].median, times["separable"].median
