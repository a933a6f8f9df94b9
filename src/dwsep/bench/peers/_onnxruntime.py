"""ONNX Runtime: one session a task, input and output bound once."""

from __future__ import annotations

import torch

from dwsep.bench.peers import _onnx_graph
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.problem import Problem


def build(problem: Problem) -> Built:
    """Builds a session with as many threads as PyTorch uses. Its CPU convolutions take NCHW only."""
    _onnx_graph.refuse_unfit(problem, "onnxruntime")
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotRun(f"{error}; get it with: pip install 'dwsep[bench]'") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_onnx_graph.make_model(problem), options, providers=["CPUExecutionProvider"])
    x, y = problem.x.clone(), torch.empty(problem.grad.shape)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, "float32", list(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, "float32", list(y.shape), y.data_ptr())

    def call(kept_alive: tuple[torch.Tensor, ...] = (x, y)) -> None:
        del kept_alive  # the binding knows the addresses alone
        session.run_with_iobinding(binding)

    return Built(call, lambda _: (y,))
