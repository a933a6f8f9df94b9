import math

import pytest
import torch

from dwsep.bench.peers import PEERS
from dwsep.bench.problem import make_problem
from dwsep.bench.registry import Task
from dwsep.bench.verify import Truth, compute_truth, find_fault
from tests.bench.toys import TINY, TINY_DEPTHWISE, TINY_DILATED

TASKS = [
    Task(TINY),
    Task(TINY, "norm"),
    Task(TINY, training=True),
    Task(TINY, "inner_relu", training=True),
    Task(TINY_DILATED, "inner_relu", training=True),
    Task(TINY_DEPTHWISE, training=True),
    Task(TINY, training=True, dtype="bfloat16"),
    Task(TINY, "norm", dtype="bfloat16"),
]


def run_eager(problem):
    with torch.set_grad_enabled(problem.task.training):
        built = PEERS["nchw"].build(problem)
        return [tensor.detach().clone() for tensor in built.tensors(built.call())]


@pytest.fixture(params=TASKS, ids=lambda task: task.key)
def truth_and_tensors(request):
    problem = make_problem(request.param)
    return compute_truth(problem), run_eager(problem)


def test_right_tensors_have_no_fault(truth_and_tensors):
    fault, error = find_fault(*truth_and_tensors)
    assert fault is None
    assert error < 1


def test_one_wrong_element_of_any_tensor_is_found(truth_and_tensors):
    truth, tensors = truth_and_tensors
    for position, name in enumerate(truth.names):
        wrong = [tensor.clone() for tensor in tensors]
        wrong[position].view(-1)[-1] += 0.5 * float(truth.values[position].abs().mean())
        assert find_fault(truth, wrong)[0] == f"1 of {wrong[position].numel()} elements of {name} are wrong"


def test_values_that_are_no_numbers_are_wrong(truth_and_tensors):
    truth, tensors = truth_and_tensors
    tensors[0].view(-1)[0] = float("nan")
    fault, error = find_fault(truth, tensors)
    assert fault is not None
    assert fault.startswith("1 of ")
    assert error == math.inf


def test_missing_tensors_and_wrong_shapes_are_faults(truth_and_tensors):
    truth, tensors = truth_and_tensors
    assert find_fault(truth, tensors[1:])[0] == f"{len(tensors) - 1} tensors instead of {len(tensors)}"
    transposed = [tensors[0].transpose(-1, -2), *tensors[1:]]
    if TINY.spatial != TINY.spatial[::-1] and transposed[0].shape != tensors[0].shape:
        assert "y has shape" in str(find_fault(truth, transposed)[0])


def test_a_wrong_weight_is_found():
    problem = make_problem(Task(TINY, training=True))
    truth = compute_truth(problem)
    problem.depthwise[0, 0, 0, 0] += 0.01
    assert find_fault(truth, run_eager(problem))[0] is not None


def test_inner_relu_allows_either_side_of_zero_where_rounding_decides():
    problem = make_problem(Task(TINY, "inner_relu", training=True))
    problem.x[:] = 1.0
    problem.depthwise[0] = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])  # cancels inside
    problem.depthwise[0] += 1e-9
    truth = compute_truth(problem)
    assert isinstance(truth.allowed[1], torch.Tensor)
    assert find_fault(truth, run_eager(problem))[0] is None
    problem.depthwise[0] -= 2e-9
    assert find_fault(truth, run_eager(problem))[0] is None


def test_find_fault_reports_the_largest_error():
    truth = Truth(("y",), (torch.zeros(3, dtype=torch.float64),), (2.0,))
    assert find_fault(truth, [torch.tensor([0.0, -1.0, 0.5])]) == (None, 0.5)
