"""Processes that train together, forked from one that has imported everything: starting them takes no time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torchmetrics.classification", "safetensors.torch", "dwsep.training.setup", "tests.training.toys"]
)


def start(work: Callable[..., Any], *arguments: Any, folder: Path, size: int = 1) -> list[Any]:
    """Start ``work(*arguments)`` in every one of some processes, as torchrun does; :func:`results` waits for them."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(size):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        path = folder / f"result-{rank}.pickle"
        path.unlink(missing_ok=True)
        process = CONTEXT.Process(target=_main, args=(where, path, work, arguments))
        process.start()
        found.append(process)
    return found


def results(processes: list[Any], folder: Path, timeout: float = 240) -> list[Any]:
    """What each process returned."""
    for process in processes:
        process.join(timeout)
        assert process.exitcode == 0, f"process {process.pid} ended with {process.exitcode}"
    return [pickle.loads((folder / f"result-{rank}.pickle").read_bytes()) for rank in range(len(processes))]


def kill(processes: list[Any]) -> None:
    """Kill them, at whatever they are doing."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
        assert not process.is_alive()


def _main(where: dict[str, Any], path: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in where.items()})
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as everywhere in the tests
    path.write_bytes(pickle.dumps(work(*arguments)))
