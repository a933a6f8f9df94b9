"""A whole run: every task under every setting of the allocator, saved after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwsep.analysis.ceilings import Ceilings
from dwsep.analysis.machine import describe_machine, describe_versions
from dwsep.bench import results as files
from dwsep.bench._process import WorkerDied, WorkerProcess
from dwsep.bench.measuring import OnPhase, Settings
from dwsep.bench.networks import AnyTask
from dwsep.bench.peers import PEERS
from dwsep.ops import native_status

# What a file must share with the run that continues it: otherwise its rows could not be compared.
_SAME_MACHINE = ("cpu", "usable_cores", "torch_threads")

# How often the ceilings are measured again at most where a record goes beyond them.
_MORE_CEILINGS = 2

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured and how.

    Attributes:
        tasks: What to measure.
        allocators: Under which settings, out of :data:`dwsep.bench.allocator.ALLOCATORS`.
        settings: How.
        command: What the file shall say made it.
        subject: "layers" or "networks", whichever the tasks are.
    """

    tasks: Sequence[AnyTask]
    allocators: Sequence[str]
    settings: Settings
    command: str
    subject: str = "layers"


class BenchInterrupted(KeyboardInterrupt):
    """A run was stopped before its end.

    Args:
        message: What was done, and how to go on.
        results: Everything measured until then.
    """

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message)
        self.results = results


def run(
    plan: Plan,
    *,
    path: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = lambda done, total, note: None,
) -> dict[str, Any]:
    """Measures tasks, each in a process under each setting of the allocator.

    Args:
        plan: The tasks.
        path: File of the results, written after each task; None for none.
        resume: Whether to keep the records that the file has, and to measure what is missing.
        on_progress: Called with the comparisons done, those planned, and what is being done.

    Returns:
        "format", "subject", "command", "settings", "machine", "versions", "ceilings" (by dtype) and "records", each
        with "task", "allocator", "peers", "other_cores" and "derived".

    Raises:
        BenchInterrupted: Ctrl-C; what was measured until then is saved.
        ValueError: The file exists and ``resume`` is not given, or it comes from another machine, other versions or
            other settings.
    """
    results = _begin(plan, path, resume)
    known = {files.record_key(record) for record in results["records"]}
    planned = [(task, allocator) for allocator in plan.allocators for task in plan.tasks]
    missing = [(task, allocator) for task, allocator in planned if f"{task.key} {allocator}" not in known]
    done = len(planned) - len(missing)
    ceilings_measured: set[tuple[str, str]] = set()
    with _Bench(plan.settings) as bench:
        try:
            for task, allocator in missing:
                name = f"{task.case.name} batch {task.case.batch} {task.variant}".rstrip() + f", {allocator}"

                def on_phase(phase: str, peer: str | None, name: str = name, done: int = done) -> None:
                    on_progress(done, len(planned), f"{name}: {phase} {PEERS[peer].label if peer else ''}".rstrip())

                if (task.dtype, allocator) not in ceilings_measured:
                    _raise_ceilings(results, task.dtype, bench.ceilings(task.dtype, allocator, on_phase))
                    ceilings_measured.add((task.dtype, allocator))
                record = {"allocator": allocator, **bench.compare(task, allocator, on_phase)}
                results["records"].append({**record, "derived": _derive(record, results)})
                for _ in range(_MORE_CEILINGS):
                    if not _beats_its_floor(results["records"][-1]):
                        break
                    _raise_ceilings(results, task.dtype, bench.ceilings(task.dtype, allocator, on_phase))
                done += 1
                if path is not None:
                    files.save(results, path)
        except KeyboardInterrupt:
            way_on = "" if path is None else f"; the same command with --resume goes on from {path}"
            raise BenchInterrupted(f"interrupted after {done} of {len(planned)} comparisons{way_on}", results) from None
    on_progress(done, len(planned), "done")
    return results


class _Bench:
    """Keeps one worker, and replaces it where another allocator is asked for or it has died."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker: WorkerProcess | None = None
        self._allocator = ""

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ceilings(self, dtype: str, allocator: str, on_phase: OnPhase) -> dict[str, Any]:
        """Measures the ceilings; a machine on which that fails cannot measure anything else."""
        try:
            return self._worker_under(allocator).request({"ceilings": dtype}, on_phase)
        except WorkerDied as death:
            raise RuntimeError(f"measuring the ceilings: {death}") from None

    def compare(self, task: AnyTask, allocator: str, on_phase: OnPhase) -> dict[str, Any]:
        """Measures a task; a peer that takes the worker down is left out at the next attempt."""
        excluded: dict[str, str] = {}
        while True:
            try:
                return self._worker_under(allocator).request({"task": task.to_json(), "excluded": excluded}, on_phase)
            except (WorkerDied, RuntimeError) as error:
                if isinstance(error, WorkerDied):
                    self._stop()
                    if error.peer is not None and error.peer not in excluded:
                        excluded[error.peer] = str(error)
                        continue
                peers = {name: {"status": "failed", "reason": str(error)} for name in self._settings.peers}
                return {"task": task.to_json(), "other_cores": None, "peers": peers}

    def _worker_under(self, allocator: str) -> WorkerProcess:
        if self._worker is None or self._allocator != allocator:
            self._stop()
            self._worker, self._allocator = WorkerProcess(allocator, self._settings), allocator
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def _raise_ceilings(results: dict[str, Any], dtype: str, entry: dict[str, Any]) -> None:
    """Takes in ceilings that were measured anew, also in what was derived from the old ones."""
    measured, earlier = Ceilings.from_json(entry), results["ceilings"].get(dtype)
    if earlier is not None:
        measured = measured.better_of(Ceilings.from_json(earlier))
    results["ceilings"][dtype] = measured.to_json()
    for record in results["records"]:
        record["derived"] = _derive(record, results)


def _beats_its_floor(record: Mapping[str, Any]) -> bool:
    """Whether something took less time than the ceilings allow: the machine had been busy when they were measured."""
    floor = record["derived"]["floor_seconds"]
    times = [peer["median"] for peer in record["peers"].values() if peer["status"] == "ok"]
    return floor is not None and bool(times) and min(times) < floor


def _derive(record: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    return files.derive(record, Ceilings.from_json(results["ceilings"][record["task"]["dtype"]]))


def _begin(plan: Plan, path: Path | None, resume: bool) -> dict[str, Any]:
    machine = {**describe_machine(), "isa": native_status().isa}
    if plan.settings.threads is not None:
        machine["torch_threads"] = plan.settings.threads
    results: dict[str, Any] = {
        "format": files.FORMAT,
        "subject": plan.subject,
        "command": plan.command,
        "settings": plan.settings.to_json(),
        "machine": machine,
        "versions": describe_versions(),
        "ceilings": {},
        "records": [],
    }
    if path is None or not path.exists():
        return results
    if not resume:
        raise ValueError(f"{path} exists: continue it with --resume, or remove it")
    earlier = files.load(path)
    if earlier["subject"] != plan.subject:
        raise ValueError(f"{path} cannot be continued: it holds {earlier['subject']}, not {plan.subject}")
    for where, names in (("machine", _SAME_MACHINE), ("versions", None), ("settings", None)):
        _refuse_difference(path, where, names or results[where], earlier[where], results[where])
    return earlier


def _refuse_difference(
    path: Path, where: str, names: Sequence[str] | Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    for name in names:
        if before.get(name) != now[name]:
            raise ValueError(
                f"{path} cannot be continued: its {where} have {name} {before.get(name)!r}, now it is {now[name]!r}"
            )
