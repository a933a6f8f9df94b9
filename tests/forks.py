"""Processes of their own for tests which need one, forked from one that has imported torch: that takes seconds."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# It runs nothing of torch's, so that no thread is lost at the fork, and does not import dwsep: every child loads the
# native library anew.
_SERVER = """
import faulthandler, json, os, sys, traceback
import hypothesis, pytest, torch
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(request[name], os.O_WRONLY), number)
            faulthandler.enable()
            os.environ.update(request["environment"])
            exec(compile(request["script"], "<script>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if not isinstance(code, int):  # a message, as the interpreter itself takes it
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run(
    script: str, environment: Mapping[str, str] | None = None, start: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python source in a process that has imported torch, and not yet dwsep.

    Args:
        script: The source.
        environment: Variables of the process.
        start: Variables with which the process began that it is forked from: what the loader, torch or OpenMP reads.
    """
    server = _server(tuple((start or {}).items()))
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in ("stdout", "stderr")}
        for path in files.values():
            path.touch()
        request = {"script": script, "environment": dict(environment or {})}
        request |= {name: str(path) for name, path in files.items()}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        outputs = {name: path.read_text(errors="replace") for name, path in files.items()}
    return subprocess.CompletedProcess(script, code, **outputs)


@functools.cache
def _server(start: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    # Threads that spin while they wait keep others, of which there may be more than cores, from the cores.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **dict(start)}
    command = [sys.executable, "-c", _SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def end() -> None:
        server.communicate()

    atexit.register(end)
    return server
