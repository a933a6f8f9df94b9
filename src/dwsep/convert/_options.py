"""What a layer can become, what each choice costs and what it loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep.analysis import measure
from dwsep.convert import fit as fitting
from dwsep.convert._modules import describe
from dwsep.convert._runs import Call, Seen
from dwsep.nn._separated import empty_separable, geometry_of

_ROUNDS, _SECONDS = 7, 0.004


class Option(NamedTuple):
    """A form that a layer can take; ``None`` in its place means dense."""

    order: str
    rank: int


@dataclass(eq=False)  # one of the network's, not its values: it is a key
class Layer:
    """A dense convolution that may become separable.

    Attributes:
        macs: of one forward pass, by form.
        seconds: of one forward pass, by form, as far as measured.
        errors: of the layer's output (of its weight, without calibration data), relative, by form.
        factors: by form and number of sweeps, as far as fitted.
        sensitivity: square of the network's relative error by that of the layer.
    """

    name: str
    conv: Any
    seen: Seen
    macs: dict[Option | None, int] = field(default_factory=dict)
    seconds: dict[Option | None, float] = field(default_factory=dict)
    errors: dict[Option | None, float] = field(default_factory=dict)
    factors: dict[tuple[Option, int], fitting.Factors] = field(default_factory=dict)
    sensitivity: float = 1.0

    @property
    def what(self) -> str:
        """The layer in words."""
        return describe(self.conv)

    @property
    def options(self) -> list[Option]:
        """The separable forms under consideration."""
        return [option for option in self.macs if option is not None]

    def count_macs(self, orders: tuple[str, ...]) -> None:
        """Fill :attr:`macs` for every form of every order."""
        conv = self.conv
        taps = geometry_of(conv).taps
        axes = len(conv.kernel_size)
        outputs = sum(_positions(call.output_shape, axes) for call in self.seen.calls)
        inputs = sum(_positions(call.input_shape, axes) for call in self.seen.calls)
        channels, out = conv.in_channels, conv.out_channels
        self.macs = {None: outputs * taps * channels * out}
        for order in orders:
            for rank in range(1, fitting.largest_rank(conv.weight, order) + 1):
                if order == "depthwise_first":
                    macs = outputs * channels * rank * (taps + out)
                else:
                    macs = out * rank * (inputs * channels + outputs * taps)
                self.macs[Option(order, rank)] = macs

    def keep(self, wanted: Callable[[Option], bool]) -> None:
        """Drop the forms that are not wanted."""
        self.macs = {option: macs for option, macs in self.macs.items() if option is None or wanted(option)}

    def time(self, options: list[Option | None], clock: Clock) -> None:
        """Fill :attr:`seconds` for some forms."""
        for option in options:
            if option not in self.seconds:
                self.seconds[option] = clock.seconds(self.conv, self.seen.calls, option)


def _positions(shape: tuple[int, ...], axes: int) -> int:
    return math.prod(shape[-axes:]) * math.prod(shape[: -axes - 1])


class Clock:
    """Seconds of layers by form, each geometry, shape and form measured once.

    The dense layer is measured beside every form, and a form's time is given in proportion: what slows the machine for
    a while slows both.
    """

    def __init__(self) -> None:
        self._known: dict[Any, float] = {}

    def seconds(self, conv: Any, calls: list[Call], option: Option | None) -> float:
        """Of all calls of one forward pass."""
        return sum(self._one(conv, call, option) for call in calls)

    def _one(self, conv: Any, call: Call, option: Option | None) -> float:
        w = conv.weight
        key = (
            type(conv), w.shape, conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.bias is None,
            w.dtype, w.device, call,
        )  # fmt: skip
        if (key, option) not in self._known:
            self._measure(conv, call, key, option)
        return self._known[key, option]

    def _measure(self, conv: Any, call: Call, key: Any, option: Option | None) -> None:
        w = conv.weight
        x = torch.randn(call.input_shape, device=w.device, dtype=torch.float32).to(w.dtype)
        if call.channels_last:
            x = x.to(memory_format=torch.channels_last)
        cases = {"dense": _run(conv, x)}
        if option is not None:
            bias = None if conv.bias is None else nn.Parameter(torch.zeros_like(conv.bias))
            layer = empty_separable(conv, option.order, option.rank, bias)
            cases["separable"] = _run(layer.eval(), x)
        with torch.no_grad():
            times = measure(cases, rounds=_ROUNDS, min_seconds=_SECONDS, warmup_seconds=_SECONDS)
        dense = self._known.setdefault((key, None), times["dense"].median)
        if option is not None:
            self._known[key, option] = times["separable"].median * dense / times["dense"].median


def _run(module: nn.Module, x: Tensor) -> Callable[[], object]:
    forward = module.forward  # without the users' hooks, which do not belong to the layer's cost
    if x.device.type != "cuda":
        return lambda: forward(x)

    def run() -> None:
        forward(x)
        torch.cuda.synchronize(x.device)

    return run
