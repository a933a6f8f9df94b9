"""What an interrupted demo leaves behind, so that the next one can go on from it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from dwsep.analysis._files import write_text_atomically

_FOLDER = "unfinished"
_STATE = "state.json"


class UnfinishedRun:
    """The folder with the checkpoints of the rows, and the time spent so far.

    Args:
        output_dir: Folder of the demo.
        fingerprint: Everything that must be the same for a run to be continued: settings, versions and machine.
        fresh: Whether to begin anew even if a run could be continued.
    """

    def __init__(self, output_dir: Path, fingerprint: dict[str, Any], fresh: bool = False) -> None:
        self.folder = output_dir / _FOLDER
        self._fingerprint = json.loads(json.dumps(fingerprint))  # as it will be read: a tuple becomes a list
        state = self._read()
        self.continued = not fresh and state is not None and state["fingerprint"] == self._fingerprint
        self._seconds_before = state["seconds"] if self.continued and state is not None else 0.0
        self._started = time.monotonic()
        if state is not None and not self.continued:
            self.remove()
        self.save()

    @property
    def seconds(self) -> float:
        """Seconds spent on the run in all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def row_folder(self, key: str) -> Path:
        """The folder of a row's checkpoint."""
        return self.folder / key

    def save(self) -> None:
        """Writes down the time spent."""
        state = {"fingerprint": self._fingerprint, "seconds": self.seconds}
        write_text_atomically(self.folder / _STATE, json.dumps(state, indent=2) + "\n")

    def remove(self) -> None:
        """Removes the folder, which the finished run no longer needs."""
        shutil.rmtree(self.folder)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            return {"fingerprint": state["fingerprint"], "seconds": float(state["seconds"])}
        except FileNotFoundError:
            if self.folder.exists():
                raise FileExistsError(f"{self.folder} is in the way: it was not made by dwsep demo") from None
            return None
        except (ValueError, KeyError, TypeError):
            return {"fingerprint": None, "seconds": 0.0}  # damaged: never equal, so it is begun anew
