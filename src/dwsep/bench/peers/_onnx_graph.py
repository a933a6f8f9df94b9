"""A task as an ONNX model, node by node: exactly the operators, whatever an exporter makes of a module today."""

from __future__ import annotations

from typing import Any

from dwsep.bench.peers._built import CannotRun
from dwsep.bench.problem import BATCH_NORM_EPS, Problem

_OPSET, _IR_VERSION = 17, 8  # old enough for every runtime of the last years


def refuse_unfit(problem: Problem, runtime: str) -> None:
    """Raises :class:`CannotRun` for what is not measured with an inference runtime."""
    task = problem.task
    if task.training:
        raise CannotRun(f"{runtime} runs inference only")
    if task.dtype != "float32":
        raise CannotRun(f"{runtime} is measured in float32 only")


def make_model(problem: Problem) -> bytes:
    """Serialises the task's forward pass, with input "x" and output "y" in (N, C, *spatial)."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise CannotRun(f"{error}; get it with: pip install 'dwsep[bench]'") from error

    case = problem.task.case
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, tensor: Any) -> str:
        constants.append(numpy_helper.from_array(tensor.numpy(), name))
        return name

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def norm_relu(value: str, stage: int) -> str:
        if not problem.norms:
            return value
        norm = problem.norms[stage]
        tensors = {"weight": norm.weight, "bias": norm.bias, "mean": norm.mean, "var": norm.var}
        names = [constant(f"norm{stage}.{name}", tensor) for name, tensor in tensors.items()]
        return add("Relu", [add("BatchNormalization", [value, *names], epsilon=BATCH_NORM_EPS)])

    pads = case.geometry.pads(case.spatial)
    value = add(
        "Conv",
        ["x", constant("depthwise", problem.depthwise)],
        group=case.channels,
        kernel_shape=list(case.kernel),
        strides=[case.stride] * case.ndim,
        dilations=[case.dilation] * case.ndim,
        pads=[low for low, _ in pads] + [high for _, high in pads],
    )
    value = norm_relu(value, 0)
    if problem.task.variant == "silu":
        value = add("Mul", [value, add("Sigmoid", [value])])
    if problem.pointwise is not None:
        value = norm_relu(add("Conv", [value, constant("pointwise", problem.pointwise)]), 1)
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "task",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(problem.x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(problem.grad.shape))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return model.SerializeToString()
