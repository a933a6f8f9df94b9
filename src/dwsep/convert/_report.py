"""What ``separate_`` did: a line for each convolution, and the network as a whole before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dwsep.tables import html_table, text_table

_HEADINGS = ("layer", "what", "status", "order", "rank", "macs", "ms", "weight error", "output error", "reason")
_FIGURES = tuple(_HEADINGS.index(name) for name in ("rank", "macs", "ms", "weight error", "output error"))
_ORDERS = {"": "", "depthwise_first": "depthwise", "pointwise_first": "pointwise"}


@dataclass(frozen=True)
class SeparatedLayer:
    """One convolution: what it was, what it is, and what that costs.

    Attributes:
        name: of the module, as ``model.named_modules()`` gives it.
        what: kernel, channels, stride and dilation in words.
        status: ``"separated"`` or ``"left dense"``.
        reason: why it was left dense.
        order: which factor comes first; empty where it was left dense.
        rank: depth multiplier; 0 where it was left dense.
        bias: whether it has a bias now; one without may have been given one, for the mean of what it lost.
        macs_before, macs_after: multiply-adds of a forward pass of the example inputs.
        seconds_before, seconds_after: the layer's time alone in such a pass, ``None`` where not measured.
        weight_error: relative Frobenius norm of what the weight lost.
        output_error: root mean square of what the output lost, relative to its deviation, on the calibration data;
            ``None`` without.
    """

    name: str
    what: str
    status: str
    reason: str = ""
    order: str = ""
    rank: int = 0
    bias: bool = False
    macs_before: int = 0
    macs_after: int = 0
    seconds_before: float | None = None
    seconds_after: float | None = None
    weight_error: float = 0.0
    output_error: float | None = None


@dataclass(frozen=True)
class SeparationReport:
    """The outcome of :func:`dwsep.separate_`; prints as a table, and shows as one in a notebook or with rich.

    Attributes:
        layers: every convolution with more than one tap.
        budget: name and value of what was asked for.
        macs_before, macs_after: multiply-adds of the whole network for the example inputs.
        parameters_before, parameters_after: elements of all parameters.
        seconds_before, seconds_after: of a call with the example inputs, measured in turns; ``None`` where not
            measured.
        output_error: relative error of the network's output on the first batches of the calibration data, or on the
            example inputs without any.

    Example:
        >>> line = SeparatedLayer("conv", "3x3, 8 to 16", "separated", "", "depthwise_first", 2, True, 1152, 400)
        >>> report = SeparationReport((line,), ("macs", 0.5), 1152, 400, 1168, 416, None, None, 0.125)
        >>> print(report)
        1 of 1 convolutions separated: macs 1.15 k to 400, parameters 1.17 k to 416, output error 12.5 %
        layer  what          status     order      rank          macs  ms  weight error  output error  reason
        conv   3x3, 8 to 16  separated  depthwise     2  1.15 k > 400             0.0 %
    """

    layers: tuple[SeparatedLayer, ...]
    budget: tuple[str, float]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    seconds_before: float | None
    seconds_after: float | None
    output_error: float

    @property
    def separated(self) -> tuple[SeparatedLayer, ...]:
        """The layers which are separable now."""
        return tuple(layer for layer in self.layers if layer.status == "separated")

    @property
    def left_dense(self) -> tuple[SeparatedLayer, ...]:
        """The layers which are as before, each with its reason."""
        return tuple(layer for layer in self.layers if layer.status != "separated")

    @property
    def summary(self) -> str:
        """One line on the whole network."""
        parts = [
            f"macs {_count(self.macs_before)} to {_count(self.macs_after)}",
            f"parameters {_count(self.parameters_before)} to {_count(self.parameters_after)}",
        ]
        if self.seconds_before is not None and self.seconds_after is not None:
            parts.append(f"{_ms(self.seconds_before)} to {_ms(self.seconds_after)} ms")
        parts.append(f"output error {_percent(self.output_error)}")
        return f"{len(self.separated)} of {len(self.layers)} convolutions separated: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Everything in the report as plain values, ready for JSON."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers], "budget": list(self.budget)}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row per layer, a column per attribute of :class:`SeparatedLayer`.

        Raises:
            ImportError: pandas is missing (extra "report").
        """
        try:
            import pandas  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError(
                f"to_pandas needs pandas ({error}); install it with: pip install 'dwsep[report]'", name=error.name
            ) from error
        return pandas.DataFrame([asdict(layer) for layer in self.layers])

    def __str__(self) -> str:
        if not self.layers:
            return self.summary
        return f"{self.summary}\n{text_table([_HEADINGS, *map(_cells, self.layers)], right=_FIGURES)}"

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.summary, title_justify="left")
        for number, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if number in _FIGURES else "left")
        for layer in self.layers:
            table.add_row(*_cells(layer))
        return table

    def _repr_html_(self) -> str:
        return html_table([_HEADINGS, *map(_cells, self.layers)], self.summary)


def _cells(layer: SeparatedLayer) -> tuple[str, ...]:
    done = layer.status == "separated"
    macs = _count(layer.macs_before) if layer.macs_before else ""
    ms = "" if layer.seconds_before is None else _ms(layer.seconds_before)
    if done:
        macs += f" > {_count(layer.macs_after)}"
        ms += "" if layer.seconds_after is None else f" > {_ms(layer.seconds_after)}"
    return (
        layer.name or "(the model)",
        layer.what,
        layer.status,
        _ORDERS[layer.order],
        str(layer.rank) if done else "",
        macs,
        ms,
        _percent(layer.weight_error) if done else "",
        "" if layer.output_error is None or not done else _percent(layer.output_error),
        layer.reason,
    )


def _count(value: float) -> str:
    from dwsep.analysis.report import format_count

    return format_count(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _ms(seconds: float) -> str:
    from dwsep.analysis.report import format_milliseconds

    return format_milliseconds(seconds)
