"""What ``accelerate_`` did: a line for each chain that runs fused, and for each part that was left alone, why."""

from __future__ import annotations

import html
from dataclasses import dataclass


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
        rows = [("module", "what", "status", "reason")]
        rows += [(line.name or "(the model)", line.what, line.status, line.reason) for line in self.lines]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join(([self.summary] if self.summary else []) + (table if self.lines else []))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("module", "what", "status", "reason"))
        rows = []
        for line in self.lines:
            cells = (line.name or "(the model)", line.what, line.status, line.reason)
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        return f"<p>{html.escape(self.summary)}</p><table><tr>{head}</tr>{''.join(rows)}</table>"
