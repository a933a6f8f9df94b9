"""Every peer that is installed computes the truth, in every rank and mode; one that is not says so."""

import sys

import pytest
import torch

from dwsep import dispatch
from dwsep.bench.peers import PEERS, CannotRun
from dwsep.bench.problem import make_problem
from dwsep.bench.registry import Task
from dwsep.bench.verify import compute_truth, find_fault
from tests.bench.toys import TINY, TINY_1D, TINY_3D, TINY_DEPTHWISE, TINY_DILATED, TINY_SHORT

RUNTIMES = ("onnxruntime", "openvino")
TASKS = [
    Task(TINY),
    Task(TINY, "norm"),
    Task(TINY_DILATED, "norm"),
    Task(TINY, "inner_relu", training=True),
    Task(TINY_DILATED, training=True),
    *(Task(case, training=training) for case in (TINY_DEPTHWISE, TINY_1D, TINY_3D) for training in (False, True)),
    *(Task(TINY_SHORT, "silu", training) for training in (False, True)),
    Task(TINY, "norm", dtype="bfloat16"),
]


def check(name, task):
    problem = make_problem(task)
    with torch.set_grad_enabled(task.training):
        try:
            built = PEERS[name].build(problem)
        except CannotRun as reason:
            pytest.skip(str(reason))
        for _ in range(2):  # the second call must not depend on what the first left
            fault, _ = find_fault(compute_truth(problem), built.tensors(built.call()))
            assert fault is None


@pytest.mark.parametrize(
    ("name", "task"),
    [
        pytest.param(name, task, id=f"{name} {task.key}")
        for name in PEERS
        for task in TASKS
        if name != "compile" and not (name in RUNTIMES and (task.training or task.dtype != "float32"))
    ],
)
def test_peer_computes_the_truth(name, task):
    check(name, task)


@pytest.mark.sweep
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.key)
def test_compiled_peer_computes_the_truth(task):
    check("compile", task)


@pytest.mark.parametrize(
    ("name", "module"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("openvino", "onnx")]
)
def test_peer_names_what_is_not_installed(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CannotRun, match=r"dwsep\[bench\]"):
        PEERS[name].build(make_problem(Task(TINY)))


@pytest.mark.parametrize("name", RUNTIMES)
def test_inference_runtime_refuses_training_and_bfloat16(name):
    with pytest.raises(CannotRun, match="inference only"):
        PEERS[name].build(make_problem(Task(TINY, training=True)))
    with pytest.raises(CannotRun, match="float32 only"):
        PEERS[name].build(make_problem(Task(TINY, dtype="bfloat16")))


def test_dwsep_refuses_to_run_as_something_else(monkeypatch):
    missing = dispatch.BackendStatus("cpu", False, ("native library: not built",))
    monkeypatch.setattr(dispatch, "backends", lambda: {"cpu": missing})
    with pytest.raises(CannotRun, match="native library: not built"):
        PEERS["dwsep"].build(make_problem(Task(TINY)))


def test_problem_is_the_same_every_time():
    first, second = (make_problem(Task(TINY, "norm")) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights))
    assert torch.equal(first.norms[1].var, second.norms[1].var)
