"""``analyze``: what a network's layers cost, promised and paid."""

from __future__ import annotations

import datetime
from typing import Any

import torch
from torch import nn

from dwsep.analysis._advice import advise, promises_of
from dwsep.analysis._load import describe_disturbance
from dwsep.analysis._measure import Measured, measure_parts
from dwsep.analysis._passes import positional
from dwsep.analysis._rows import Row, rows_of, rows_without_times
from dwsep.analysis._trace import tensors_in
from dwsep.analysis.ceilings import PEAKS, Ceilings, cached_ceilings
from dwsep.analysis.cost import analyse
from dwsep.analysis.cost_report import CostReport
from dwsep.analysis.machine import describe_machine, describe_versions
from dwsep.errors import ArgumentError


def analyze(
    model: nn.Module,
    example_inputs: Any,
    *,
    latency: bool = True,
    training: bool = False,
    advice: bool = True,
    seconds: float = 4.0,
    name: str | None = None,
) -> CostReport:
    """Tells for every layer of a network what it computes, what it moves, and how long it takes.

    The network runs as it is: modes, buffers, gradients and random generators are left as they were. An accelerated
    network is counted layer by layer, and timed stage by stage.

    Args:
        model: Network on any device. On "meta", where it has no data, only ``latency=False`` is possible.
        example_inputs: (N, C, H, W) for an image network, or a tuple or list of positional arguments.
        latency: Whether to time the network and its parts, and measure this machine's peak and bandwidth where they
            are not known yet.
        training: Whether to look at a training step, forward and backward, instead of an inference.
        advice: Whether to look for what is measurably wrong with the slowest layers; only with ``latency`` on a CPU.
        seconds: How long the network and its parts are timed.
        name: Title of the report; the model's class by default.

    Returns:
        The report: prints as a table, shows as one in a notebook, and saves as a page.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``, ``example_inputs`` neither a tensor nor a tuple or list, or
            ``seconds`` no number.
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) ``latency`` is asked for of tensors without data,
            some tensors are on "meta" and some are not, or ``seconds`` is negative.

    Cost: one forward (with ``training`` a step) to count; with ``latency`` some seconds to time and to advise.

    Source: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, for floor and bound.

    Example:
        >>> import torch, dwsep
        >>> layer = dwsep.nn.DepthwiseSeparableConv2d(8, 16, bias=False)
        >>> report = dwsep.analyze(layer, torch.ones(1, 8, 10, 10), latency=False)
        >>> report.macs == 10 * 10 * 8 * (9 + 16), [row.kind for row in report.rows]
        (True, ['depthwise', 'pointwise'])
    """
    import dwsep.analysis.flops  # noqa: F401  for torch's own counter from now on

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, got {seconds!r} of type {type(seconds).__name__}")
    if not seconds >= 0:
        raise ArgumentError(f"seconds must not be negative, got {seconds}")
    arguments = positional(example_inputs)
    tensors = [*tensors_in(arguments), *model.parameters()]
    devices = sorted({tensor.device.type for tensor in tensors})
    if latency and "meta" in devices:
        raise ArgumentError("latency must be False for tensors on 'meta', which hold no data, got True")
    if "meta" in devices and len(devices) > 1:
        raise ArgumentError(f"model and example_inputs must all be on 'meta' or none, got {' and '.join(devices)}")
    with torch.random.fork_rng():  # a network's own draws, and those of the experiments
        cost = analyse(model, arguments, training=training)
        dtype = _dtype(tensors)
        measured: Measured | None = None
        ceilings: Ceilings | None = None
        promises = ()
        if latency:
            measured = measure_parts(model, arguments, cost, training=training, seconds=seconds)
            on_cpu = devices == ["cpu"]
            if on_cpu and dtype in PEAKS:
                ceilings = _ceilings(measured, dtype, training, cost.layers)
            rows = rows_of(cost.layers, measured, training, ceilings, dtype)
            if advice and on_cpu and dtype == "float32":
                promises = promises_of(rows, cost.layers, training=training)
                rows = advise(rows, cost.layers, promises, training)
        else:
            rows = rows_without_times(cost.layers, training)
    machine = describe_machine()
    other = None if measured is None else measured.other_cores
    return CostReport(
        name=name or type(model).__name__,
        training=training,
        input_shapes=tuple(tuple(tensor.shape) for tensor in tensors_in(arguments)),
        parameters=cost.parameters,
        layers=cost.layers,
        rows=tuple(rows),
        latency=None if measured is None else measured.whole,
        between=None if measured is None else measured.between,
        steps=None if measured is None else measured.steps,
        ceilings=ceilings,
        dtype=dtype,
        promises=promises,
        machine=machine,
        versions=describe_versions(),
        disturbance=describe_disturbance(other, torch.get_num_threads(), machine["usable_cores"]),
        page_faults=None if measured is None else measured.page_faults,
        fault_seconds=None if measured is None or measured.page_faults is None else measured.fault_seconds,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _dtype(tensors: list[torch.Tensor]) -> str:
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()}
    return " and ".join(sorted(names)) or "no floating point"


def _ceilings(measured: Measured, dtype: str, training: bool, layers: Any) -> Ceilings:
    """This machine's, measured anew where a large part was faster than those in the file allow."""

    def allows(ceilings: Ceilings) -> bool:
        rows: list[Row] = rows_of(layers, measured, training, ceilings, dtype)
        return all(row.share is None or row.share < 1.1 or (row.floor or 0) < 1e-4 for row in rows)

    return cached_ceilings(dtype, at_least=allows)
