"""How much of a network's input each value depends on, followed from operator to operator."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dwsep.geometry import ConvGeometry

# Per spatial axis the elements of the input which an element depends on, or None for all of them.
Field = tuple[int | None, ...]
_State = tuple[tuple[Fraction | None, Fraction], ...]  # (extent, jump) per axis
_MIXING = ("attention", "matmul", "linear")


class Fields:
    """The receptive field of every tensor, by its memory."""

    def __init__(self) -> None:
        self.known: dict[int, _State] = {}

    def start(self, tensors: Sequence[Tensor]) -> None:
        """Marks the network's inputs: each element of (N, C, *spatial) depends on itself."""
        for tensor in tensors:
            if tensor.dim() >= 3:
                self.known[_key(tensor)] = ((Fraction(1), Fraction(1)),) * (tensor.dim() - 2)

    def view(self, args: Any, result: Any) -> None:
        """Follows an operator that renames memory: the memory keeps its field."""
        for tensor in _tensors(result):
            if _key(tensor) not in self.known:
                state = self._joined(_tensors(args))
                if state is not None:
                    self.known[_key(tensor)] = state

    def after(self, kind: str, name: str, args: Any, kwargs: Any, result: Any, details: Any) -> Field | None:
        """Follows an operator, and returns its result's field."""
        taken, made = _tensors((args, kwargs)), _tensors(result)
        state = self._joined(taken)
        if state is not None:
            state = _through(state, kind, name, args, taken, made, details)
        for tensor in made:
            if state is None:
                self.known.pop(_key(tensor), None)
            else:
                self.known[_key(tensor)] = state
        return None if state is None else tuple(None if extent is None else int(extent) for extent, _ in state)

    def _joined(self, taken: Sequence[Tensor]) -> _State | None:
        """The largest of what the operands depend on."""
        states = [self.known[key] for key in map(_key, taken) if key in self.known]
        if not states:
            return None
        ndim = max(map(len, states))
        states = [state for state in states if len(state) == ndim]
        return tuple(
            (None if any(s[axis][0] is None for s in states) else max(s[axis][0] for s in states), states[0][axis][1])  # type: ignore[type-var]
            for axis in range(ndim)
        )


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _through(
    state: _State, kind: str, name: str, args: Any, taken: Sequence[Tensor], made: Sequence[Tensor], details: Any
) -> _State:
    if details and not details["transposed"] and len(details["kernel_size"]) == len(state):
        return _window(state, details["kernel_size"], details["stride"], details["dilation"])
    if details and details["transposed"] and len(details["kernel_size"]) == len(state):
        steps = zip(state, details["kernel_size"], details["stride"], details["dilation"])
        # an output depends on the inputs whose kernels, jump / stride apart, reach it
        return tuple((_more(e, (d * (k - 1)) // s * j), j / s) for (e, j), k, s, d in steps)
    if kind in _MIXING and any(len(t.shape) < len(state) + 2 for t in made):
        return tuple((None, jump) for _, jump in state)  # tokens, or all pixels, in one product
    if kind == "pooling":
        return _pooled(state, name, args, taken[0], made[0])
    if kind == "resampling" and made[0].dim() == len(state) + 2:
        taps = 1 if "nearest" in name else 3 if "bicubic" in name else 1
        scales = [Fraction(n, m) for n, m in zip(taken[0].shape[2:], made[0].shape[2:])]
        reach = 0 if "nearest" in name else taps
        return tuple((_more(e, reach * j), j * scale) for (e, j), scale in zip(state, scales))
    return state


def _more(extent: Fraction | None, by: Any) -> Fraction | None:
    return None if extent is None else extent + by


def _window(state: _State, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> _State:
    geometry = ConvGeometry.make(len(state), kernel, stride, 0, dilation)
    below = [(extent or 1, jump) for extent, jump in state]
    grown = geometry.receptive_field(below)  # type: ignore[arg-type]
    return tuple((None if old is None else e, j) for (old, _), (e, j) in zip(state, grown))  # type: ignore[misc]


def _pooled(state: _State, name: str, args: Any, source: Tensor, out: Tensor) -> _State:
    ndim = len(state)
    if "adaptive" not in name and "_pool" in name:
        kernel = _sizes(args[1], ndim)
        stride = _sizes(args[2], ndim) if len(args) > 2 and args[2] else kernel
        return _window(state, kernel, stride, (1,) * ndim)
    if source.dim() != ndim + 2:
        return tuple((None, jump) for _, jump in state)
    sizes = out.shape[2:] if out.dim() == source.dim() else (1,) * ndim
    if tuple(sizes) == tuple(source.shape[2:]):
        return state  # over channels
    # an adaptive window; over all pixels, it sees as far as they see
    spans = [-(-n // m) for n, m in zip(source.shape[2:], sizes)]
    return tuple((_more(e, (span - 1) * j), j * span) for (e, j), span in zip(state, spans))


def _sizes(value: Any, ndim: int) -> tuple[int, ...]:
    entries = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return entries * ndim if len(entries) == 1 else entries
