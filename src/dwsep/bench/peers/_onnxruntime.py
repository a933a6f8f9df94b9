"""ONNX Runtime: one session a task, input and output bound once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dwsep.bench.peers import _onnx_graph
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.problem import Problem


def build(problem: Problem) -> Built:
    """Builds a session with as many threads as PyTorch uses. Its CPU convolutions take NCHW only."""
    _onnx_graph.refuse_unfit(problem, "onnxruntime")
    return build_session(lambda: _onnx_graph.make_model(problem), problem.x, problem.grad.shape)


def build_session(make_model: Callable[[], bytes], x: torch.Tensor, y_shape: torch.Size) -> Built:
    """Builds a session for a model.

    Args:
        make_model: Makes an ONNX model with input "x" and output "y", in float32.
        x: The input.
        y_shape: Shape of the output.

    Raises:
        CannotRun: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotRun(f"{error}; get it with: pip install 'dwsep[bench]'") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(make_model(), options, providers=["CPUExecutionProvider"])
    x, y = x.clone(), torch.empty(y_shape)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, "float32", list(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, "float32", list(y.shape), y.data_ptr())

    def call(kept_alive: tuple[torch.Tensor, ...] = (x, y)) -> None:
        del kept_alive  # the binding knows the addresses alone
        session.run_with_iobinding(binding)

    return Built(call, lambda _: (y,))
