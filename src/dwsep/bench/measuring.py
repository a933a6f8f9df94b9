"""One comparison: every peer built, verified, then timed with the others in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dwsep.analysis._load import OtherProcesses
from dwsep.analysis._page_faults import count_page_faults
from dwsep.analysis.latency import measure
from dwsep.bench.network_problem import make_network_problem, saved_bytes
from dwsep.bench.network_verify import compute_network_truth
from dwsep.bench.networks import AnyTask, NetworkTask
from dwsep.bench.peers import NETWORK_BUILDERS, PEERS, Built, CannotRun
from dwsep.bench.problem import make_problem
from dwsep.bench.verify import Truth, compute_truth, find_fault

_FAULT_CALLS = 3


@dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    Attributes:
        peers: Names out of :data:`dwsep.bench.peers.PEERS`.
        threads: CPU threads; None for PyTorch's choice.
        rounds: Turns of each peer.
        min_seconds: Shortest timed turn.
        warmup_seconds: For how long each peer runs before it is timed.
        settle_seconds: Untimed calls before each timed turn. ONNX Runtime's threads go on spinning for 30 ms.
        max_seconds: After which no further round is begun.
        ceiling_seconds: For how long each ceiling is measured.
    """

    peers: tuple[str, ...] = tuple(PEERS)
    threads: int | None = None
    rounds: int = 15
    min_seconds: float = 0.02
    warmup_seconds: float = 0.1
    settle_seconds: float = 0.03
    max_seconds: float = 20.0
    ceiling_seconds: float = 0.3

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {**asdict(self), "peers": list(self.peers)}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_json`."""
        return Settings(**{**entry, "peers": tuple(entry["peers"])})


# A rough look in seconds: for whether everything runs, not for figures to report.
QUICK: dict[str, Any] = {
    "rounds": 3,
    "min_seconds": 0.002,
    "warmup_seconds": 0.01,
    "settle_seconds": 0.03,
    "max_seconds": 3.0,
    "ceiling_seconds": 0.02,
}

OnPhase = Callable[[str, str | None], None]


@dataclass(frozen=True)
class _Prepared:
    """A task whose peers can be built.

    Attributes:
        build: Makes a peer ready to run it, by the peer's name.
        truth: What the peers must compute.
        facts: What the record says of the task beside its peers.
    """

    build: Callable[[str], Built]
    truth: Truth
    facts: Mapping[str, Any]


def _prepare(task: AnyTask) -> _Prepared:
    if isinstance(task, NetworkTask):
        network = make_network_problem(task)
        facts: dict[str, Any] = {"macs": network.macs}
        if task.training:
            facts["eager_saved_bytes"] = saved_bytes(network.copy_network(), network.x)
        builders, truth = NETWORK_BUILDERS, compute_network_truth(network)
        return _Prepared(lambda name: builders[name](network), truth, {"network": facts})
    problem = make_problem(task)
    return _Prepared(lambda name: PEERS[name].build(problem), compute_truth(problem), {})


def compare(
    task: AnyTask,
    settings: Settings,
    *,
    excluded: Mapping[str, str] | None = None,
    on_phase: OnPhase = lambda phase, peer: None,
) -> dict[str, Any]:
    """Measures one task with every peer.

    Args:
        task: What to measure.
        settings: How.
        excluded: Peers to leave out, and the reason that the result shall give.
        on_phase: Called with what is done next, and the name of the peer it is done with, if it is one.

    Returns:
        "task", "other_cores" (cores that other processes kept busy meanwhile, None where unknown) and "peers": name ->
        "status" and what belongs to it. A peer is "ok", with "median", "lower_quartile" and "upper_quartile" in seconds
        per call, "rounds", "error" (the largest, as a fraction of what is allowed) and "page_faults" per call, and for
        a network's training "saved_bytes" (what its forward saves for the backward) where they were counted; or it is
        "wrong", "failed" (an error) or "unavailable" (it cannot run such a task, or is not installed), with a "reason".
        A network has an entry "network": "macs" of a forward pass, and in training "eager_saved_bytes".
    """
    on_phase("computing the truth", None)
    prepared = _prepare(task)
    ready: dict[str, Built] = {}
    results: dict[str, dict[str, Any]] = {}
    load = OtherProcesses()
    with torch.set_grad_enabled(task.training):
        for name in settings.peers:
            if excluded and name in excluded:
                results[name] = {"status": "failed", "reason": excluded[name]}
                continue
            on_phase("compiling and verifying" if name == "compile" else "verifying", name)
            results[name] = _build(name, prepared, ready)
        if ready:
            on_phase("timing", None)
            load = OtherProcesses()
            for name, figures in _time(ready, settings).items():
                results[name] |= figures
    other_cores = load.cores()
    ready.clear()
    gc.collect()  # compiled networks are full of cycles, and would keep their memory while the next ones are timed
    return {"task": task.to_json(), "other_cores": other_cores, "peers": results, **prepared.facts}


def _build(name: str, prepared: _Prepared, ready: dict[str, Built]) -> dict[str, Any]:
    try:
        built = prepared.build(name)
        fault, error = find_fault(prepared.truth, _tensors(built))
    except CannotRun as reason:
        return {"status": "unavailable", "reason": str(reason)}
    except Exception as error:  # whatever a peer raises is its result; the others go on
        return {"status": "failed", "reason": f"{type(error).__name__}: {_first_line(error)}"}
    if fault is not None:
        return {"status": "wrong", "reason": fault}
    ready[name] = built
    saved = {} if built.saved_bytes is None else {"saved_bytes": built.saved_bytes}
    return {"status": "ok", "error": error, **saved}


def _tensors(built: Built) -> Sequence[torch.Tensor]:
    return built.tensors(built.call())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _time(ready: Mapping[str, Built], settings: Settings) -> dict[str, dict[str, Any]]:
    latencies = measure(
        {name: built.call for name, built in ready.items()},
        rounds=settings.rounds,
        min_seconds=settings.min_seconds,
        warmup_seconds=settings.warmup_seconds,
        settle_seconds=settings.settle_seconds,
        max_seconds=settings.max_seconds,
    )
    figures = {}
    for name, built in ready.items():
        latency = latencies[name]
        figures[name] = {
            "median": latency.median,
            "lower_quartile": latency.lower_quartile,
            "upper_quartile": latency.upper_quartile,
            "rounds": latency.rounds,
            "page_faults": _page_faults(built.call),
        }
    return figures


def _page_faults(call: Callable[[], object]) -> float | None:
    """Page faults per call, which tell what a peer pays for fresh memory."""
    call()
    before = count_page_faults()
    if before is None:
        return None
    for _ in range(_FAULT_CALLS):
        call()
    return ((count_page_faults() or 0) - before) / _FAULT_CALLS
