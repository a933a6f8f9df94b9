"""A process that measures what it is told, one request a line: ``python -m dwsep.bench.worker``.

The allocator's settings are read when a process starts, and a peer that takes its process down must not take the
results along. The first line holds the settings; every further one is a request: {"ceilings": dtype}, or {"task": ...,
"excluded": ...}. Answers are lines, too: any number of {"phase": ..., "peer": ...}, then one {"answer": ...} or
{"error": ...}. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def main(source: TextIO, target: TextIO) -> None:
    """Answers the requests of ``source`` on ``target``."""
    import torch

    from dwsep.analysis.ceilings import measure_ceilings
    from dwsep.bench.allocator import give_back
    from dwsep.bench.measuring import Settings, compare
    from dwsep.bench.networks import task_from_json

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=target, flush=True)

    def on_phase(phase: str, peer: str | None) -> None:
        send({"phase": phase, "peer": peer})

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "ceilings" in request:
            on_phase("measuring the ceilings", None)
            return measure_ceilings(request["ceilings"], seconds=settings.ceiling_seconds).to_json()
        return compare(task_from_json(request["task"]), settings, excluded=request["excluded"], on_phase=on_phase)

    first = source.readline()
    if not first:  # the parent is gone already
        return
    settings = Settings.from_json(json.loads(first))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    for line in source:
        send(_guarded(lambda line=line: answer(json.loads(line))))
        give_back()


def _guarded(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"answer": answer()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    # What libraries print belongs to the error output; the answers have the original standard output to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.stdin, answers)
