"""The outcome of :func:`dwsep.analyze`: a table, a page, or plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.analysis._advice import Promise
from dwsep.analysis._rows import Row
from dwsep.analysis.ceilings import Ceilings
from dwsep.analysis.cost import LayerCost
from dwsep.analysis.latency import Latency

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 2
# More lines than this are shown as blocks unless somebody asks for all.
MOST_LINES = 40


@dataclass(frozen=True)
class CostReport:
    """What a network's layers cost, promised and paid.

    Attributes:
        name: The network's.
        training: Whether a training step was analysed, or an inference.
        input_shapes: Of the example inputs.
        parameters: Elements of all parameters, each shared one counted once.
        layers: Cost of every layer by itself, in the order in which they ran.
        rows: The lines: what ran as one, with its time where it was timed.
        latency: Of the whole network, measured apart from its parts; None where nothing was timed.
        between: Seconds of a run that no row has: Python's own between the layers, and autograd's; None likewise.
        steps: Of an accelerated network, the seconds of its steps run one by one over those of the calls which run them
            together: the rows hold the latter, divided in proportion. None where nothing was timed or is accelerated.
        ceilings: This machine's peak and bandwidths; None where nothing was timed, or not on a CPU.
        dtype: Of the inputs and parameters, "float32"; several are joined by " and ".
        promises: Separable layers with their dense twins' times.
        machine: As :func:`dwsep.analysis.machine.describe_machine`.
        versions: Of the packages involved.
        disturbance: Whether other processes took part of the machine meanwhile, in a sentence; None where not.
        page_faults: Of a run: memory that it gave back to the system before and takes anew; None where nothing was
            timed, or the system does not say.
        fault_seconds: What one of them costs, measured; None likewise.
        created: When, in ISO 8601.

    Example:
        >>> import torch, dwsep
        >>> report = dwsep.analyze(torch.nn.Linear(4, 2), torch.ones(3, 4), latency=False)
        >>> report.to_dict()["totals"]["macs"]
        24
    """

    name: str
    training: bool
    input_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    layers: tuple[LayerCost, ...]
    rows: tuple[Row, ...]
    latency: Latency | None
    between: Latency | None
    steps: float | None
    ceilings: Ceilings | None
    dtype: str
    promises: tuple[Promise, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    disturbance: str | None
    page_faults: float | None
    fault_seconds: float | None
    created: str

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers; of forward and backward where a training step was analysed."""
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes read and written by all rows."""
        return sum(row.bytes for row in self.rows)

    @property
    def seconds(self) -> float | None:
        """Sum of the rows' times and the time between them; None where nothing was timed."""
        if self.between is None:
            return None
        return self.between.median + sum(row.latency.median for row in self.rows if row.latency is not None)

    @property
    def floor(self) -> float | None:
        """Sum of the rows' floors; None where this machine's peak is unknown."""
        floors = [row.floor for row in self.rows if row.floor is not None]
        return sum(floors) if floors else None

    @property
    def dense_macs(self) -> int | None:
        """Multiply-adds of the dense twin of the whole network, at inference; None without a separable layer."""
        twins = [layer for layer in self.layers if layer.dense_twin is not None]
        if not twins:
            return None
        by_name = {layer.name: layer.macs for layer in self.layers}
        saved = sum(t.dense_twin.macs - t.macs - by_name[t.dense_twin.pointwise] for t in twins if t.dense_twin)
        return sum(layer.macs for layer in self.layers) + saved

    @property
    def saved_bytes(self) -> int | None:
        """Bytes that eager PyTorch saves for the backward; None at inference."""
        return sum(layer.saved_bytes or 0 for layer in self.layers) if self.training else None

    @property
    def saved_bytes_fused(self) -> int | None:
        """Bytes that accelerated stages save for the backward; None at inference."""
        return sum(layer.saved_bytes_fused or 0 for layer in self.layers) if self.training else None

    def table(self, *, sort: str | None = None, depth: int | None = None, most: int | None = None) -> Table:
        """Makes a table for a terminal (rich).

        Args:
            sort: "order", "time", "macs" or "bytes"; by default the slowest first where there are times, and the
                order in which layers ran where there are none.
            depth: Rows whose names share so many parts are one line, "blocks.1" for 2; 0 shows every row. By default
                every row where there are few.
            most: Lines after which the rest is summed up in one; None for no limit.

        Raises:
            ArgumentError: an unknown ``sort``, or a negative number.
        """
        from dwsep.analysis._tables import make_table

        return make_table(self, sort, depth, most)

    def __str__(self) -> str:
        from dwsep.analysis._tables import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from dwsep.analysis._tables import render_notebook

        return render_notebook(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data that JSON can hold; seconds, bytes and multiply-adds are plain numbers."""
        return {
            "format": FORMAT,
            "network": self.name,
            "training": self.training,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "dtype": self.dtype,
            "created": self.created,
            "totals": {
                "macs": self.macs,
                "parameters": self.parameters,
                "bytes": self.bytes,
                "dense_macs": self.dense_macs,
                "saved_bytes": self.saved_bytes,
                "saved_bytes_fused": self.saved_bytes_fused,
                "seconds": None if self.latency is None else self.latency.median,
                "seconds_of_parts": self.seconds,
                "seconds_between": None if self.between is None else self.between.median,
                "steps_over_calls": self.steps,
                "floor": self.floor,
            },
            "latency": None if self.latency is None else asdict(self.latency),
            "rows": [_row_entry(row) for row in self.rows],
            "layers": [asdict(layer) for layer in self.layers],
            "promises": [{**asdict(promise), "speedup": promise.speedup} for promise in self.promises],
            "ceilings": None if self.ceilings is None else self.ceilings.to_json(),
            "machine": self.machine,
            "versions": self.versions,
            "disturbance": self.disturbance,
            "page_faults": self.page_faults,
            "fault_seconds": self.fault_seconds,
        }

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a line for each row.

        Raises:
            ImportError: pandas is missing.
        """
        try:
            import pandas  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError(
                f"to_pandas needs pandas ({error}); install it with: pip install pandas", name=error.name
            ) from error
        return pandas.DataFrame([_flat(_row_entry(row)) for row in self.rows])

    def save(self, path: str | Path, *, against: CostReport | None = None) -> None:
        """Writes the report as one page (".html") that needs nothing else, or as data (".json").

        Args:
            path: File to write; it is replaced as a whole or not at all.
            against: A second report, of the same kind of run: the file then shows both side by side.

        Raises:
            ArgumentError: the name ends in neither.
            ImportError: jinja2 or matplotlib is missing (extra "report").
        """
        from dwsep.analysis._pages import save

        save(self, path, against=against)


def _row_entry(row: Row) -> dict[str, Any]:
    entry = {**asdict(row), "intensity": row.intensity, "share": row.share, "block": row.block()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    latency = entry.pop("latency") or {}
    parts: Sequence[str] = ("median", "lower_quartile", "upper_quartile")
    return {**entry, **{f"seconds_{part}": latency.get(part) for part in parts}}
