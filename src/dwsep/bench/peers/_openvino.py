"""OpenVINO: one compiled model a task, whose input and output are channels last, which spares it conversions."""

from __future__ import annotations

from typing import Any

import torch

from dwsep.bench.peers import _onnx_graph
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.problem import Problem

_LAYOUTS = {2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def build(problem: Problem) -> Built:
    """Compiles the task for the CPU in float32, with as many threads as PyTorch uses."""
    _onnx_graph.refuse_unfit(problem, "openvino")
    openvino = load_openvino()
    model = openvino.Core().read_model(_onnx_graph.make_model(problem))
    layouts = _LAYOUTS.get(problem.task.case.ndim)
    if layouts is not None:
        inside, outside = (openvino.Layout(layout) for layout in layouts)
        processor = openvino.preprocess.PrePostProcessor(model)
        for end in (processor.input(), processor.output()):
            end.tensor().set_layout(outside)
            end.model().set_layout(inside)
        model = processor.build()
    request = compile_model(model)
    x = problem.x if layouts is None else problem.x.movedim(1, -1).contiguous()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def call(kept_alive: torch.Tensor = x) -> None:
        del kept_alive  # the request knows the address alone
        request.infer()

    def tensors(_: object) -> tuple[torch.Tensor]:
        y = torch.from_numpy(request.get_output_tensor().data)
        return (y if layouts is None else y.movedim(-1, 1),)

    return Built(call, tensors)


def load_openvino() -> Any:
    """The library.

    Raises:
        CannotRun: It is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise CannotRun(f"{error}; get it with: pip install 'dwsep[bench]'") from error
    return openvino


def compile_model(model: Any, precision: str = "f32") -> Any:
    """Compiles a model for the CPU in a precision, with as many threads as PyTorch uses, and makes a request of it."""
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,  # else it takes bfloat16 by itself where the CPU is fast at it
        "ENABLE_CPU_PINNING": False,  # pinned threads would keep other peers off their cores
    }
    return load_openvino().Core().compile_model(model, "CPU", options).create_infer_request()
