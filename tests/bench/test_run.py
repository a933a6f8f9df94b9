"""Whole runs, in real worker processes where the process is the point, else with one that answers by rote."""

import os
import signal
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from dwsep.bench import _process
from dwsep.bench import run as module
from dwsep.bench._process import WorkerDied, WorkerProcess
from dwsep.bench.registry import Task
from dwsep.bench.results import derive, load
from dwsep.bench.run import BenchInterrupted, Plan, run
from tests.bench.toys import CEILINGS, FAST, TINY, TINY_DEPTHWISE, make_record

TASKS = [Task(TINY), Task(TINY, "norm"), Task(TINY_DEPTHWISE)]
PLAN = Plan(TASKS, ("default", "raised"), FAST, "dwsep bench layers")


class Rote:
    """A worker that measures nothing; `deaths` maps a task's variant to the peers that take it down."""

    log: ClassVar[list] = []
    deaths: ClassVar[dict] = {}
    ceilings_asked: ClassVar[int] = 0
    interrupt_at: ClassVar[int | None] = None

    def __init__(self, allocator, settings):
        self.allocator = allocator
        Rote.log.append(("start", allocator))

    def request(self, request, on_phase):
        if "ceilings" in request:
            Rote.ceilings_asked += 1
            return replace(CEILINGS, fma_peak=CEILINGS.fma_peak * Rote.ceilings_asked).to_json()
        task = Task.from_json(request["task"])
        on_phase("verifying", "nchw")
        Rote.log.append((task.key, self.allocator))
        if Rote.interrupt_at == len([entry for entry in Rote.log if entry[0] != "start"]):
            raise KeyboardInterrupt
        for peer in Rote.deaths.get(task.variant, ()):
            if peer not in request["excluded"]:
                raise WorkerDied(f"{peer} died", peer)
        failed = {name: {"status": "failed", "reason": reason} for name, reason in request["excluded"].items()}
        record = make_record({"dwsep": 1.0, "nchw": 2.0, "channels_last": 3.0}, task)
        return {"task": record["task"], "other_cores": 0.0, "peers": {**record["peers"], **failed}}

    def stop(self):
        Rote.log.append(("stop", self.allocator))


@pytest.fixture
def rote(monkeypatch):
    monkeypatch.setattr(module, "WorkerProcess", Rote)
    monkeypatch.setattr(Rote, "log", [])
    monkeypatch.setattr(Rote, "deaths", {})
    monkeypatch.setattr(Rote, "interrupt_at", None)
    monkeypatch.setattr(Rote, "ceilings_asked", 0)
    return Rote


def keys(results):
    return [(Task.from_json(record["task"]).key, record["allocator"]) for record in results["records"]]


def test_run_measures_every_task_under_every_allocator(rote):
    progress = []
    results = run(PLAN, on_progress=lambda *state: progress.append(state))
    assert keys(results) == [(task.key, allocator) for allocator in PLAN.allocators for task in TASKS]
    assert [entry for entry in rote.log if entry[0] in ("start", "stop")] == [
        ("start", "default"),
        ("stop", "default"),
        ("start", "raised"),
        ("stop", "raised"),
    ]
    assert results["records"][0]["derived"]["ratios"]["best"] == 2.0
    assert progress[0] == (0, 6, "tiny batch 2 bare, default: verifying NCHW")
    assert progress[-1] == (6, 6, "done")


def test_run_measures_the_ceilings_under_each_allocator_and_derives_from_the_highest(rote):
    results = run(PLAN)
    assert rote.ceilings_asked == 2
    assert results["ceilings"]["float32"]["fma_peak"] == 2 * CEILINGS.fma_peak
    highest = replace(CEILINGS, fma_peak=2 * CEILINGS.fma_peak)
    assert all(record["derived"] == derive(record, highest) for record in results["records"])


@pytest.mark.parametrize(("factor", "asked", "share"), [(1.25, 2, 0.8), (4.0, 1, 0.5), (0.5, 3, 2.0)])
def test_ceilings_that_something_goes_beyond_are_measured_again(rote, monkeypatch, factor, asked, share):
    task = TASKS[0]
    ours = factor * make_record({"dwsep": 1.0}, task)["derived"]["floor_seconds"]

    def request(self, request, on_phase):
        if "ceilings" in request:
            Rote.ceilings_asked += 1
            part = min(1.0, Rote.ceilings_asked / 2)  # the machine is busy at first, and gives half of what it can
            copy = {size: part * rate for size, rate in CEILINGS.copy.items()}
            return replace(CEILINGS, fma_peak=part * CEILINGS.fma_peak, copy=copy).to_json()
        record = make_record({"dwsep": ours, "nchw": 9.0}, task)
        return {"task": record["task"], "other_cores": 0.0, "peers": record["peers"]}

    monkeypatch.setattr(Rote, "request", request)
    results = run(Plan((task,), ("default",), FAST, "dwsep bench layers"))
    assert rote.ceilings_asked == asked
    assert results["records"][0]["derived"]["share_of_floor"] == pytest.approx(share)


def test_run_resumes_where_it_was_interrupted(rote, tmp_path):
    path = tmp_path / "results.json"
    rote.interrupt_at = 3
    with pytest.raises(BenchInterrupted, match=r"interrupted after 2 of 6 comparisons.*--resume") as caught:
        run(PLAN, path=path)
    assert len(caught.value.results["records"]) == len(load(path)["records"]) == 2
    assert rote.log[-1] == ("stop", "default")
    rote.interrupt_at, rote.log[:] = None, []
    results = run(PLAN, path=path, resume=True)
    assert len([entry for entry in rote.log if entry[0] not in ("start", "stop")]) == 4
    assert len(set(keys(results))) == len(keys(results)) == 6
    assert keys(load(path)) == keys(results)


def test_run_does_not_write_over_results(rote, tmp_path):
    path = tmp_path / "results.json"
    run(PLAN, path=path)
    with pytest.raises(ValueError, match="exists: continue it with --resume, or remove it"):
        run(PLAN, path=path)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [("machine", "cpu", "another"), ("versions", "torch", "0.1"), ("settings", "rounds", 99)],
)
def test_run_does_not_mix_what_cannot_be_compared(rote, tmp_path, where, name, value):
    path = tmp_path / "results.json"
    earlier = run(PLAN, path=path)
    earlier[where][name] = value
    module.files.save(earlier, path)
    with pytest.raises(ValueError, match=f"cannot be continued: its {where} have {name} {value!r}"):
        run(PLAN, path=path, resume=True)


def test_run_does_not_mix_layers_and_networks(rote, tmp_path):
    path = tmp_path / "results.json"
    run(PLAN, path=path)
    with pytest.raises(ValueError, match="cannot be continued: it holds layers, not networks"):
        run(replace(PLAN, subject="networks"), path=path, resume=True)


def test_run_leaves_out_a_peer_that_takes_the_worker_down(rote):
    rote.deaths = {"norm": ("nchw", "channels_last"), "bare": (None,)}
    results = run(Plan(TASKS[:2], ("default",), FAST, "x"))
    bare, norm = results["records"]
    assert {peer["reason"] for peer in bare["peers"].values()} == {"None died"}
    assert bare["derived"]["share_of_floor"] is None
    assert [norm["peers"][name]["status"] for name in FAST.peers] == ["ok", "failed", "failed"]
    assert norm["peers"]["nchw"]["reason"] == "nchw died"
    assert len([entry for entry in rote.log if entry[0] == "start"]) == 4


def test_run_in_real_processes(tmp_path):
    settings = type(FAST)(**{**vars(FAST), "peers": ("nchw",), "threads": 1})
    results = run(Plan([Task(TINY)], ("default", "raised"), settings, "x"), path=tmp_path / "results.json")
    assert keys(results) == [(Task(TINY).key, "default"), (Task(TINY).key, "raised")]
    assert all(record["peers"]["nchw"]["status"] == "ok" for record in results["records"])
    assert results["machine"]["torch_threads"] == 1
    assert results["ceilings"]["float32"]["matmul"]["float32"] > 0
    assert torch.get_num_threads() >= 1


def test_worker_process_answers_an_error_and_says_how_it_died(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    with WorkerProcess("raised", FAST) as worker:
        environment = _process.environment("raised", os.environ)
        assert environment["MALLOC_TOP_PAD_"] != "1"
        with pytest.raises(RuntimeError, match="KeyError: 'task'"):
            worker.request({}, lambda *_: None)

        def kill(phase, peer):
            os.kill(worker._process.pid, signal.SIGKILL)

        with pytest.raises(WorkerDied, match="exit code -9"):
            worker.request({"task": Task(TINY).to_json(), "excluded": {}}, kill)
        with pytest.raises(WorkerDied, match="exit code -9"):
            worker.request({"task": Task(TINY).to_json(), "excluded": {}}, kill)
