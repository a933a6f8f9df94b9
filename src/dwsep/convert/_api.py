"""``separate_``, ``merge_`` and ``restructure_``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from dwsep.analysis import count, measure
from dwsep.convert import _modules, _runs, _select, _surgery
from dwsep.convert._config import SeparateConfig, matches
from dwsep.convert._norms import NormCorrection
from dwsep.convert._options import Clock, Layer, Option
from dwsep.convert._report import SeparatedLayer, SeparationReport
from dwsep.convert._store import MomentStore
from dwsep.errors import ArgumentError

Filter = Callable[[str, nn.Module], bool]
Progress = Callable[[str, int, int], None]


def separate_(
    model: nn.Module,
    config: SeparateConfig,
    *,
    example_inputs: Any,
    calibration: Any = None,
    filter_fn: Filter | None = None,
    optimizers: Any = (),
    on_progress: Progress | None = None,
) -> SeparationReport:
    """Make the dense convolutions of a trained network separable, in place, its weights kept, within a budget.

    A dense k x k convolution is a separable one with depth multiplier k * k; the best one of a smaller multiplier, the
    rank, comes from singular values, or, with calibration data, from least squares on what the layer is given. Each
    layer gets its own rank, so that the whole keeps the budget and loses as little as it can. Every module stays the
    object that it was, so that shared modules, references, hooks and the root itself go on working, and names of
    parameters that were not separated stay. Batch norms' statistics are corrected on the calibration data. Nothing is
    changed if an error is raised.

    Args:
        model: any module; changed in place.
        config: the budget, and which layers.
        example_inputs: a tensor, or a tuple or list of positional arguments, on the model's device: what macs are
            counted and latency is measured for.
        calibration: some hundred images or the like, without labels: a tensor (one batch) or an iterable of batches,
            each a tensor, or a tuple or list of which as many leading entries are taken as ``example_inputs`` has. A
            DataLoader will do. It is gone through several times; an iterator is kept in memory. Without it, weights are
            approximated instead of outputs, at a much larger error.
        filter_fn: called with the name and the module of everything inside; where it returns ``False``, that module
            and all within stay dense.
        optimizers: one or several whose parameters are those of the model: the new ones take the place of the old, in
            the same group, without state.
        on_progress: called with what is being done, and how much of how much is done.

    Returns:
        What each layer became, what that costs and loses, and why others stayed dense.

    Raises:
        ArgumentError: (a ``ValueError``) the budget cannot be met, a pattern matches nothing, the model is accelerated.
        TypeError: an argument of the wrong type.

    Cost: some passes over the calibration data, and per layer the moments of its input: (in_channels * taps)^2 * 8
    bytes, 1 GiB of them at a time.

    Source: Guo et al., "Network decoupling", arXiv:1808.05517; Haase and Amthor, arXiv:2003.13549, for the
    pointwise-first order; He et al., "Channel pruning", arXiv:1707.06168, for fitting a layer's outputs.

    Example:
        >>> import torch, dwsep
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(8, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 16, 3, padding=1)).eval()
        >>> config = dwsep.SeparateConfig(macs=0.5, measure_layers=False)
        >>> data = [torch.randn(4, 8, 12, 12) for _ in range(4)]
        >>> report = dwsep.separate_(model, config, example_inputs=data[0][:1], calibration=data)
        >>> report.macs_after <= 0.5 * report.macs_before
        True
        >>> any(isinstance(layer, dwsep.nn.DepthwiseSeparableConv2d) for layer in model)
        True
    """
    _check(model, config, filter_fn, on_progress)
    several = _surgery.check_optimizers(optimizers)
    _surgery.check_not_accelerated(model)
    arguments = _runs.arguments_of(example_inputs)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batches = _runs.batches_of(calibration, len(arguments), device)
    job = _Job(model, config, arguments, batches, on_progress or (lambda what, done, total: None))
    lines, layers = _find(model, config, filter_fn)
    choice = job.choose(layers, lines) if layers else {}
    return job.commit(choice, lines, several)


def _check(model: object, config: object, filter_fn: object, on_progress: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if not isinstance(config, SeparateConfig):
        raise TypeError(f"config must be a dwsep.SeparateConfig, got {config!r} of type {type(config).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of a name and a module, got {filter_fn!r}")
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function of a text and two numbers, got {on_progress!r}")


Lines = dict[str, SeparatedLayer | None]


def _find(model: nn.Module, config: SeparateConfig, filter_fn: Filter | None) -> tuple[Lines, dict[str, Any]]:
    """The convolutions that may be separated, by name, and a line for each that may not, in the network's order."""
    names = [name for name, _ in model.named_modules()]
    for argument in ("include", "exclude"):
        for pattern in getattr(config, argument):
            if not any(matches(pattern, name) for name in names):
                raise ArgumentError(f"{argument}: {pattern!r} matches no module of the model")
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    filtered = [name for name, module in model.named_modules() if filter_fn is not None and not filter_fn(name, module)]
    lines: Lines = {}
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _ConvNd) or (_modules.why_not(module) is None and _modules.is_pointwise(module)):
            continue
        reason = _modules.why_not(module)
        if reason is None:
            reason = _unwanted(name, module, config, filtered)
        if reason is None:
            others = [other for other in owners[id(module.weight)] if other != name]
            reason = f"its weight is that of {others[0]}, too" if others else None
        lines[name] = None if reason is None else _left(name, module, reason)
        if reason is None:
            layers[name] = module
    return lines, layers


def _unwanted(name: str, conv: _ConvNd, config: SeparateConfig, filtered: Sequence[str]) -> str | None:
    if any(root in ("", name) or name.startswith(f"{root}.") for root in filtered):
        return "filter_fn returned False"
    if config.include and not any(matches(pattern, name) for pattern in config.include):
        return "not in include"
    if any(matches(pattern, name) for pattern in config.exclude):
        return "in exclude"
    if min(conv.in_channels, conv.out_channels) < config.min_channels:
        return f"fewer than {config.min_channels} channels"
    return None


def _left(name: str, conv: _ConvNd, reason: str, layer: Layer | None = None) -> SeparatedLayer:
    macs = 0 if layer is None else layer.macs[None]
    seconds = None if layer is None else layer.seconds.get(None)
    return SeparatedLayer(
        name,
        _modules.describe(conv),
        "left dense",
        reason,
        macs_before=macs,
        macs_after=macs,
        seconds_before=seconds,
        seconds_after=seconds,
    )


class _Job:
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
                lines[name] = _left(name, conv, "the network did not call it")
                continue
            layer = Layer(name, conv, seen[conv])
            layer.count_macs(self._orders(conv))
            layers.append(layer)
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
            return {}
        _select.estimate_errors(layers, self.store, self._report("errors by rank"))
        few = _runs.OutputError(self.model, [_first(next(iter(self.data)))])
        _select.measure_sensitivities(layers, self.store, few, self._report("sensitivities"))
        if name == "macs":
            return _select.by_macs(layers, self.macs, value * self.macs if value <= 1 else value, self._tried)
        if name == "error":
            return _select.by_error(layers, value, self._tried)
        return _select.by_latency(layers, config.latency, config.latency_seconds, self._timed)

    def _paying(self, layers: list[Layer], lines: Lines, reason: str) -> list[Layer]:
        for layer in layers:
            if not layer.options:
                lines[layer.name] = _left(layer.name, layer.conv, reason, layer)
        return [layer for layer in layers if layer.options]

    def _tried(self, choice: _select.Choice) -> float:
        """Error of the network's output with a choice, by weights that stand for the layers; all is put back."""
        changes = []
        for done, (layer, form) in enumerate(choice.items()):
            if form is not None:
                changes.append(_select.change(layer, _select.fit_layer(layer, form, self.store, self.config.sweeps)))
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
                new = _modules.empty_separable(layer.conv, form.order, form.rank, bias)
                swaps.append((layer.conv, _surgery.state_of(layer.conv), _surgery.successor(layer.conv, new)))
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
                lines[layer.name] = _left(layer.name, layer.conv, "its error would cost more than it saves", layer)
            elif self.config.measure_layers:
                layer.time([None, form], self.clock)
        self.store = None  # frees the moments before the weights are doubled
        norms = self.norms if self.batches is not None and chosen else None
        swaps, successors = [], {}
        for layer, factors in fitted.items():
            what = layer.what
            bias, made = self._bias(layer, factors)
            old, weight = _surgery.state_of(layer.conv), layer.conv.weight
            new = _modules.separable(layer.conv, factors, bias)
            successors[weight] = [*_modules.factors_of(new), *([bias] if made and bias is not None else [])]
            swaps.append((layer.conv, old, _surgery.successor(layer.conv, new)))
            lines[layer.name] = self._line(layer, what, factors, bias is not None)
        for module, _, new in swaps:
            _surgery.become(module, new)
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
    now = [_surgery.state_of(module) for module, _, _ in swaps]
    state = None

    def run(wanted: int) -> Callable[[], object]:
        def call() -> None:
            nonlocal state
            if state != wanted:  # never in a timed call: each turn begins with one that is not
                for module, *states in swaps:
                    _surgery.become(module, states[wanted])
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
                _surgery.become(module, one)
    return times["dense"].median, times["separable"].median


def merge_(model: nn.Module, *, optimizers: Any = ()) -> tuple[str, ...]:
    """Make separable layers dense again, in place: every one that a dense convolution can stand for exactly.

    That are the layers :func:`dwsep.separate_` made, and separable layers without norm, activation and residual. The
    new weight is the product of the factors, in float64, rounded once: the network computes the same as before.

    Args:
        model: any module; changed in place.
        optimizers: as in :func:`dwsep.separate_`.

    Returns:
        The names of the layers that are dense now.

    Raises:
        ArgumentError: (a ``ValueError``) the model is accelerated.
        TypeError: ``model`` is no module.

    Cost: K * C * R * taps macs a layer.

    Example:
        >>> import torch, dwsep
        >>> model = torch.nn.Sequential(dwsep.nn.DepthwiseSeparableConv2d(4, 8, depth_multiplier=2))
        >>> x = torch.randn(1, 4, 6, 6)
        >>> before = model(x)
        >>> dwsep.merge_(model), type(model[0]).__name__
        (('0',), 'Conv2d')
        >>> torch.allclose(model(x), before, atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    several = _surgery.check_optimizers(optimizers)
    _surgery.check_not_accelerated(model)
    merged: dict[str, Any] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        ours = isinstance(module, _modules.PointwiseFirstSeparable)
        if ours or (isinstance(module, _modules.Separable) and module not in inside):
            if not ours and _modules.why_not_merged(module) is not None:
                continue
            merged[name] = module
            inside.update(module.modules())
    successors: dict[nn.Parameter, list[nn.Parameter]] = {}
    for module in merged.values():
        old = list(module.parameters())
        new = _modules.merged(module)
        kept = list(new.parameters())
        gone = [parameter for parameter in old if not any(parameter is other for other in kept)]
        made = [parameter for parameter in kept if not any(parameter is other for other in old)]
        successors.update({parameter: made if number == 0 else [] for number, parameter in enumerate(gone)})
        _surgery.become(module, _surgery.successor(module, new))
    _surgery.rebind(several, successors)
    return tuple(merged)


def restructure_(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a dense network the modules that :func:`dwsep.separate_` gave another of its kind, weights not yet set.

    So a separated network is loaded: build the dense one, restructure it, load the state dict.

    Args:
        model: the dense network; changed in place.
        structure: :attr:`SeparationReport.structure` of the other.

    Raises:
        ArgumentError: (a ``ValueError``) the model has no such convolution.
        TypeError: ``model`` is no module.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3))
        >>> restructure_(model, {"0": {"order": "depthwise_first", "rank": 2, "bias": True}})
        >>> list(model.state_dict())
        ['0.depthwise.weight', '0.pointwise.weight', '0.pointwise.bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    modules = dict(model.named_modules())
    for name in structure:
        conv = modules.get(name)
        if not isinstance(conv, _ConvNd) or _modules.why_not(conv) is not None:
            raise ArgumentError(f"structure: the model has no dense convolution {name!r}")
    for name, form in structure.items():
        conv: Any = modules[name]
        bias = conv.bias
        if bias is None and form["bias"]:
            bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        new = _modules.empty_separable(conv, form["order"], form["rank"], bias)
        _surgery.become(conv, _surgery.successor(conv, new))
