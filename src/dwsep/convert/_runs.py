"""Running a network over data: its inputs, what each layer is given, and how far its outputs are from before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OUTPUT_BATCHES = 4  # over which the network's error is measured: their dense outputs are kept meanwhile
Batch = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """One call of a layer: shapes of input and output, and whether the input was in channels_last."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channels_last: bool


@dataclass
class Seen:
    """What one forward pass shows of a layer: its calls, and the batch norm that reads its output."""

    calls: list[Call] = field(default_factory=list)
    norm: nn.Module | None = None


def arguments_of(example_inputs: Any) -> Batch:
    """The positional arguments that ``example_inputs`` stands for."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise TypeError(
        f"example_inputs must be a tensor, or a tuple or list of positional arguments, got "
        f"{type(example_inputs).__name__}"
    )


def batches_of(calibration: Any, count: int, device: torch.device) -> Sequence[Batch] | None:
    """Calibration data as something to run over again and again; ``None`` if it is.

    A batch is a tensor, or a tuple or list whose first ``count`` entries are the network's arguments; labels may
    follow.
    """
    if calibration is None:
        return None
    if isinstance(calibration, Tensor):
        return [(calibration,)]
    if not isinstance(calibration, Iterable):
        raise TypeError(f"calibration must be None, a tensor or an iterable of batches, got {calibration!r}")
    if iter(calibration) is calibration or not hasattr(calibration, "__len__"):
        calibration = list(calibration)  # can be gone through once alone
    if not len(calibration):  # type: ignore[arg-type]
        raise ArgumentError("calibration must have at least one batch, got none")
    return _Batches(calibration, count, device)  # type: ignore[return-value]


class _Batches:
    def __init__(self, source: Any, count: int, device: torch.device) -> None:
        self.source, self.count, self.device = source, count, device

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            entries = (
                (batch,) if isinstance(batch, Tensor) else tuple(batch) if isinstance(batch, (tuple, list)) else None
            )
            if entries is None or len(entries) < self.count:
                raise TypeError(
                    f"calibration: a batch must be a tensor, or a tuple or list of at least {self.count} arguments, "
                    f"got {type(batch).__name__}"
                )
            yield tuple(
                entry.to(self.device) if isinstance(entry, Tensor) else entry for entry in entries[: self.count]
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Hooks that are removed again, whatever happens."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observe(model: nn.Module, arguments: Batch, layers: Iterable[nn.Module]) -> dict[nn.Module, Seen]:
    """Run the network once and note what the layers are called with."""
    seen = {layer: Seen() for layer in layers}
    outputs: dict[int, tuple[Any, nn.Module]] = {}

    def after(module: nn.Module, args: Batch, out: Tensor) -> None:
        x = args[0]
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        seen[module].calls.append(Call(tuple(x.shape), tuple(out.shape), last))
        outputs[id(out)] = (ref(out), module)

    def before(norm: nn.Module, args: Batch) -> None:
        made = outputs.get(id(args[0])) if args else None
        if made is not None and made[0]() is args[0]:
            seen[made[1]].norm = norm

    hooks = [layer.register_forward_hook(after) for layer in seen]
    hooks += [norm.register_forward_pre_hook(before) for norm in batch_norms(model)]
    with hooked(hooks), evaluating(model):
        model(*arguments)
    return seen


def batch_norms(model: nn.Module) -> list[Any]:
    """The batch norms with running statistics."""
    return [module for module in model.modules() if type(module) in _NORMS and module.running_mean is not None]


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a network's output, however they are nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_of(value)


class OutputError:
    """How far a network's outputs are from those it had when this was made, on the first batches of the data."""

    def __init__(self, model: nn.Module, batches: Iterable[Batch], *, at_most: int = _OUTPUT_BATCHES) -> None:
        self.model = model
        self.batches = [batch for batch, _ in zip(batches, range(at_most), strict=False)]
        self.wanted = [[out.double() for out in outputs] for outputs in self._run()]
        self.scale = sum(float(out.square().sum()) for outputs in self.wanted for out in outputs)
        if not self.wanted or not self.scale > 0:
            raise ArgumentError(
                "the model's outputs on the data must hold a floating-point tensor that is not all zero"
            )

    def _run(self) -> Iterator[list[Tensor]]:
        with evaluating(self.model):
            for batch in self.batches:
                yield list(tensors_of(self.model(*batch)))

    def measure(self) -> float:
        """Root mean square of the difference, relative to that of the outputs as they were."""
        lost = 0.0
        for outputs, wanted in zip(self._run(), self.wanted, strict=True):
            lost += sum(float((new.double() - old).square().sum()) for new, old in zip(outputs, wanted, strict=True))
        return (lost / self.scale) ** 0.5


@contextmanager
def replaced_weights(changes: Iterable[tuple[Any, Tensor, Tensor]]) -> Iterator[None]:
    """Dense layers with other weights and a shift added to their outputs, for a while."""
    with torch.no_grad():
        kept, hooks = [], []
        for layer, weight, shift in changes:
            kept.append((layer, layer.weight.clone()))
            layer.weight.copy_(weight)
            hooks.append(layer.register_forward_hook(_adds(shift)))
        try:
            with hooked(hooks):
                yield
        finally:
            for layer, weight in kept:
                layer.weight.copy_(weight)


def _adds(shift: Tensor) -> Any:
    def hook(module: Any, args: Batch, out: Tensor) -> Tensor:
        return out + shift.view(-1, *(1,) * len(module.kernel_size))

    return hook
