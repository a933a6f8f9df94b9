"""Tables of the reports that the verbs return, as text and as HTML, without a package for it."""

from __future__ import annotations

import html
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def text_table(rows: Rows, *, right: Sequence[int] = ()) -> str:
    """Columns side by side, each as wide as its widest cell; the first row is the heading.

    Args:
        rows: equally many cells each.
        right: numbers of the columns that stand at their right edge, as figures do.

    Example:
        >>> print(text_table([("layer", "macs"), ("conv", "12"), ("head", "3")], right=(1,)))
        layer  macs
        conv     12
        head      3
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def html_table(rows: Rows, caption: str = "") -> str:
    """A paragraph with the caption and a ``<table>``, all text escaped; the first row is the heading.

    Example:
        >>> html_table([("layer",), ("a<b",)], "one layer")
        '<p>one layer</p><table><tr><th>layer</th></tr><tr><td>a&lt;b</td></tr></table>'
    """
    parts = []
    for index, row in enumerate(rows):
        tag = "td" if index else "th"
        parts.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<p>{html.escape(caption)}</p><table>{''.join(parts)}</table>"
