"""The worker process as its parent sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from dwsep.bench.allocator import environment
from dwsep.bench.measuring import Settings

_SHUTDOWN_SECONDS = 5


class WorkerDied(Exception):
    """The process ended before it answered.

    Args:
        reason: How, and the last line it wrote.
        peer: The peer it was busy with, or None.
    """

    def __init__(self, reason: str, peer: str | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.peer = peer


class WorkerProcess:
    """A worker under one setting of the allocator; leaving the context ends it.

    Args:
        allocator: "default" or "raised".
        settings: For every request.
    """

    def __init__(self, allocator: str, settings: Settings) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dwsep.bench.worker"],
            env={**environment(allocator, os.environ), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )
        self._send(settings.to_json())

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(self, request: dict[str, Any], on_phase: Callable[[str, str | None], None]) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            WorkerDied: The process ended instead.
            RuntimeError: It answered with an error.
        """
        assert self._process.stdout is not None
        self._send(request)
        peer = None
        for line in self._process.stdout:
            message = json.loads(line)
            if "phase" in message:
                peer = message["peer"]
                on_phase(message["phase"], peer)
            elif "error" in message:
                raise RuntimeError(message["error"])
            else:
                return message["answer"]
        raise WorkerDied(self._last_words(), peer)

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was left to flush has no reader
                    continue
        self._process.wait(_SHUTDOWN_SECONDS)
        self._log.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return  # reading the answer finds out why

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process ended with exit code {code}: {lines[-1].strip() if lines else 'no message'}"
