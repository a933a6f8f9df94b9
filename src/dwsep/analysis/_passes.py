"""The passes over a network that count: an inference, and a training step whose traces are removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.analysis import _graph
from dwsep.analysis._trace import Record, Tracer, bytes_of, key_of, tensors_in

# Accelerated stages do not keep what a batch norm or an activation makes where these alone take it, nor a product with
# a gate that pointwise layers alone take: they compute it again while loading. Networks without a depthwise layer in
# front of one of the latter, or a pointwise one behind an activation, are not accelerated.
_LOADING = {"batch norm", "activation", "depthwise", "pointwise", "pooling", "gate"}
_GAINING = {"batch norm", "activation", "pointwise"}


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """A network's positional arguments.

    Raises:
        TypeError: neither a tensor nor a tuple or list.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise TypeError(
        f"example_inputs must be a tensor, or a tuple or list of positional arguments, got "
        f"{type(example_inputs).__name__}"
    )


def trace_inference(model: nn.Module, arguments: Sequence[Any]) -> Tracer:
    """Runs the forward once, in evaluation mode and without gradients."""
    tracer = Tracer(model)
    tracer.fields.start(tensors_in(arguments))
    with evaluating(model), torch.no_grad(), tracer.following(model), tracer:
        model(*arguments)
    return tracer


def trace_training(model: nn.Module, arguments: Sequence[Any]) -> Tracer:
    """Runs a training step once, and notes its backward with the records of the forward."""
    tracer = Tracer(model)
    tracer.fields.start(tensors_in(arguments))
    tracer.own.update({key_of(t): t for t in tensors_in(arguments)})
    graph, memory = _Attribution(tracer), _Saved(tracer)
    with training_step(model):
        with tracer.following(model), torch.autograd.graph.saved_tensors_hooks(memory.pack, lambda tensor: tensor):
            tracer.on_enter, tracer.on_exit = graph.enter, graph.leave
            with tracer:
                output = model(*arguments)
            graph.leave(output)
            tracer.on_enter = tracer.on_exit = None
        memory.finish()
        tracer.in_backward = True
        with tracer:
            backward(output)
    return tracer


def backward(output: Any) -> None:
    """Runs the backward of an output with ones as its gradient.

    Raises:
        ValueError: nothing in the output can be differentiated.
    """
    ends = [t for t in tensors_in(output) if t.requires_grad]
    if not ends:
        raise ValueError("model must return something that depends on a parameter which requires a gradient")
    torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode each module was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training  # not module.train(): that would reset the children, which may differ


@contextmanager
def training_step(model: nn.Module) -> Iterator[None]:
    """Gradients on; afterwards buffers, gradients and the random generators are as they were.

    Modules keep their modes, apart from a model that is in evaluation mode as a whole, which trains meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    if not any(training for _, training in modes):
        model.train()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


class _Attribution:
    """Tells which record a node of the backward belongs to."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.nodes = _graph.Nodes()
        self.since = 0

    def enter(self, arguments: Any) -> None:
        self._assign(self.nodes.new(arguments))

    leave = enter

    def _assign(self, nodes: list[Any]) -> None:
        records = self.tracer.records[self.since :]
        self.since = len(self.tracer.records)
        records = records or self.tracer.records[-1:]
        for node in nodes:
            name = _graph.name_of(node)
            named = [
                r for r in reversed(records) if r.op.strip("_").startswith(name) or name.startswith(r.op.strip("_"))
            ]
            counted = [r for r in reversed(records) if r.macs]
            candidates = named or counted or records
            if candidates:
                _graph.watch(node, lambda record=candidates[0]: self._set(record), lambda: self._set(None))

    def _set(self, record: Record | None) -> None:
        self.tracer.backward_of = record


class _Saved:
    """Counts what autograd saves: each memory once, with the record that ran when it was saved first."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.kept: dict[int, tuple[Tensor, int]] = {}  # holds the tensors, so that no memory is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        key = key_of(tensor)
        if key not in self.tracer.own and key not in self.kept:
            self.kept[key] = (tensor, len(self.tracer.records))
        return tensor

    def finish(self) -> None:
        """Adds the bytes to the records."""
        records, makers, takers = self.tracer.records, self.tracer.makers, self.tracer.takers
        gains = any(
            (makers[key].kind == "depthwise" and takers[key] & _GAINING)
            or (makers[key].kind == "activation" and "pointwise" in takers[key])
            for key in self.kept
            if key in makers
        )
        for key, (tensor, number) in self.kept.items():
            size = tensor.untyped_storage().nbytes() or bytes_of(tensor)
            maker = makers.get(key)
            record = maker if maker is not None else records[min(number, len(records) - 1)]
            record.saved += size
            if not (gains and maker is not None and _is_made_again(maker, takers.get(key, set()))):
                record.saved_fused += size


def _is_made_again(maker: Record, takers: set[str]) -> bool:
    if len(maker.output_shape) != 4:
        return False
    if maker.op.strip("_") == "mul":  # with a gate
        return takers == {"pointwise"}
    return ("batch_norm" in maker.op or maker.kind == "activation") and takers <= _LOADING
