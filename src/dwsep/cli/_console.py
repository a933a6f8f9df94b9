"""Where commands print: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def output_console() -> Console:
    """Makes the console for results, which may be piped into a file."""
    from rich.console import Console

    return Console(highlight=False)


def progress_console() -> Console:
    """Makes the console for everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Has warnings printed as a line of text, without the place in the code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def make_progress(console: Console, *, refresh: bool = True) -> Progress:
    """Makes a progress display: what is being done, a bar, a note on the current state, and the time so far.

    Args:
        console: Console to draw on. Where it is no terminal, only the finished bars are printed.
        refresh: Whether it is drawn anew all the time, by a thread, instead of when it is told to.

    Returns:
        A display whose tasks carry a ``note`` field.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=refresh,
    )


def check_writable(option: str, path: Path | None) -> None:
    """Makes sure that a file can be written, so that a long run can fail before it starts instead of at its end.

    Raises:
        OSError: The path is a folder, or lies in what is none or cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{option}: {path} is a folder, name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # missing ones will be made
    if not folder.is_dir():
        raise NotADirectoryError(f"{option}: {path} cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: {path} cannot be written: no permission to write in {folder}")
