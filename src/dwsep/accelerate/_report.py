"""What ``accelerate_`` did: a line for each chain that runs fused, and for each part that was left alone, why."""

from __future__ import annotations

from dataclasses import dataclass

from dwsep.tables import html_table, text_table


@dataclass(frozen=True)
class Line:
    """One chain or part: its module's name, what it consists of, ``"fused"`` or ``"left alone"``, and why."""

    name: str
    what: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class AccelerationReport:
    """The outcome of :func:`dwsep.accelerate_`; prints as a table, and shows as one in a notebook.

    Example:
        >>> AccelerationReport((Line("conv", "3x3 depthwise, batch norm, relu", "fused"),)).fused[0].name
        'conv'
    """

    lines: tuple[Line, ...]
    summary: str = ""

    @property
    def fused(self) -> tuple[Line, ...]:
        """The chains which run fused."""
        return tuple(line for line in self.lines if line.status == "fused")

    @property
    def left_alone(self) -> tuple[Line, ...]:
        """The parts which run as before, each with its reason."""
        return tuple(line for line in self.lines if line.status != "fused")

    def __str__(self) -> str:
        return "\n".join(([self.summary] if self.summary else []) + ([text_table(self._rows())] if self.lines else []))

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self.summary)

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [("module", "what", "status", "reason")]
        return rows + [(line.name or "(the model)", line.what, line.status, line.reason) for line in self.lines]
