"""Reading files of text."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_file(path: Path, encoding: str = "utf-8") -> str:
    """Read a file of text, without the mark that spreadsheets put before UTF-8.

    Args:
        path: The file.
        encoding: Of the file.

    Returns:
        Its content, line ends as they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the encoding is unknown, or not the file's; the message names it.
    """
    try:
        marked = codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        raise ValueError(f"encoding: unknown name {encoding!r}; utf-8, latin-1 and cp1252 are common ones") from None
    try:
        with path.open(encoding="utf-8-sig" if marked else encoding, newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in the encoding {encoding}: {error}") from error
