"""``separate_`` and ``merge_``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dwsep.convert import _runs, _surgery
from dwsep.convert._config import SeparateConfig
from dwsep.convert._find import Filter, find
from dwsep.convert._job import Job, Progress
from dwsep.convert._modules import merged as merged_layer
from dwsep.convert._modules import why_not_merged
from dwsep.convert._report import SeparationReport
from dwsep.nn._separated import PointwiseFirstSeparable, Separable, become, successor


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
    job = Job(model, config, arguments, batches, on_progress or (lambda what, done, total: None))
    lines, layers = find(model, config, filter_fn)
    return job.commit(job.choose(layers, lines), lines, several)


def _check(model: object, config: object, filter_fn: object, on_progress: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if not isinstance(config, SeparateConfig):
        raise TypeError(f"config must be a dwsep.SeparateConfig, got {config!r} of type {type(config).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of a name and a module, got {filter_fn!r}")
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function of a text and two numbers, got {on_progress!r}")


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
        ours = isinstance(module, PointwiseFirstSeparable)
        if ours or (isinstance(module, Separable) and module not in inside):
            if not ours and why_not_merged(module) is not None:
                continue
            merged[name] = module
            inside.update(module.modules())
    successors: dict[nn.Parameter, list[nn.Parameter]] = {}
    for module in merged.values():
        old = list(module.parameters())
        new = merged_layer(module)
        kept = list(new.parameters())
        gone = [parameter for parameter in old if not any(parameter is other for other in kept)]
        made = [parameter for parameter in kept if not any(parameter is other for other in old)]
        successors.update({parameter: made if number == 0 else [] for number, parameter in enumerate(gone)})
        become(module, successor(module, new))
    _surgery.rebind(several, successors)
    return tuple(merged)
