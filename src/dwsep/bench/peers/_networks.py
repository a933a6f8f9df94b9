"""How each peer runs a whole network, on a copy of its own."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dwsep import dispatch
from dwsep.accelerate import accelerate_
from dwsep.bench.network_problem import NetworkProblem, saved_bytes, step, step_tensors
from dwsep.bench.peers import _compile, _onnxruntime, _openvino
from dwsep.bench.peers._built import Built, CannotRun


def build_ours(problem: NetworkProblem) -> Built:
    """Accelerates the network, for inference with its weights frozen, as all but eager PyTorch have them; input and
    parameters stay in the format which they have.
    """
    status = dispatch.backends()["cpu"]
    if not status.available:
        # without them it would be PyTorch's kernels under our name
        raise CannotRun("; ".join(status.reasons))
    network = problem.copy_network()
    report = accelerate_(network, frozen=not problem.task.training)
    if not report.fused:
        raise CannotRun(report.summary)
    return _build(problem, network, problem.x.clone())


def build_nchw(problem: NetworkProblem) -> Built:
    """The network as it is."""
    return _build(problem, problem.copy_network(), problem.x.clone())


def build_channels_last(problem: NetworkProblem) -> Built:
    """The network and its input in channels-last format."""
    _refuse_overrun(problem)
    network = problem.copy_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _build(problem, network, problem.x.clone(memory_format=torch.channels_last))


def build_compiled(problem: NetworkProblem) -> Built:
    """Compiles the network, channels last."""
    _refuse_overrun(problem)
    network = problem.copy_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = problem.x.clone(memory_format=torch.channels_last)
    compiled = _compile.compile_network(network, fullgraph=False)
    built = _build(problem, network, x, run=compiled)
    _compile.first_call(built.call, problem.task.training)
    return built


def build_onnxruntime(problem: NetworkProblem) -> Built:
    """Exports the network to ONNX and runs that."""
    _refuse_training(problem, "onnxruntime")
    if problem.task.dtype != "float32":
        raise CannotRun("onnxruntime runs float32 only")
    return _onnxruntime.build_session(lambda: _export(problem), problem.x, problem.grad.shape)


def build_openvino(problem: NetworkProblem) -> Built:
    """Converts the network with OpenVINO's own reader of PyTorch models; one of bfloat16 as float32 with the same
    weights, which it is told to compute in bfloat16.
    """
    _refuse_training(problem, "openvino")
    openvino = _openvino.load_openvino()
    x = problem.x.clone().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces, of which torch advises against
        model = openvino.convert_model(problem.copy_network().float(), example_input=x, input=[list(x.shape)])
    request = _openvino.compile_model(model, "f32" if problem.task.dtype == "float32" else "bf16")
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def call(kept_alive: Tensor = x) -> None:
        del kept_alive  # the request knows the address alone
        request.infer()

    return Built(call, lambda _: (torch.from_numpy(request.get_output_tensor().data),))


# By the names of dwsep.bench.peers.PEERS.
NETWORK_BUILDERS: dict[str, Callable[[NetworkProblem], Built]] = {
    "dwsep": build_ours,
    "nchw": build_nchw,
    "channels_last": build_channels_last,
    "compile": build_compiled,
    "onnxruntime": build_onnxruntime,
    "openvino": build_openvino,
}


def _build(problem: NetworkProblem, network: nn.Module, x: Tensor, run: Callable[[Tensor], Any] | None = None) -> Built:
    """A peer that calls ``run``, or the network itself."""
    forward = network if run is None else run
    if not problem.task.training:
        return Built(lambda: forward(x))

    def autocast(x: Tensor) -> Tensor:
        with problem.autocast():
            return forward(x)

    parameters = list(network.parameters())
    call = step(autocast if problem.task.autocasts else forward, parameters, x, problem.grad)
    # The compiler would read the hooks that count into its graph.
    with problem.autocast():
        return Built(call, step_tensors(parameters), saved_bytes(network, x) if run is None else None)


def _refuse_training(problem: NetworkProblem, runtime: str) -> None:
    if problem.task.training:
        raise CannotRun(f"{runtime} runs inference only")


def _refuse_overrun(problem: NetworkProblem) -> None:
    """Refuses what would write past its memory."""
    if not problem.task.training:
        return
    for name, module in problem.network.named_modules():
        if overruns(module):
            raise CannotRun(
                f"in training, channels last, {name!r} would corrupt memory: oneDNN's weight gradient of a strided 1x1 "
                "convolution of fewer than 16 channels (https://github.com/uxlfoundation/oneDNN/issues/6035)"
            )


def overruns(module: nn.Module) -> bool:
    """Whether torch's gradient for a convolution's weight writes past its scratch memory, channels-last: a strided 1x1
    of fewer channels than a vector of AVX-512 has lanes (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.in_channels >= 16:
        return False
    return tuple(module.kernel_size) == (1, 1) and max(module.stride) > 1


def _export(problem: NetworkProblem) -> bytes:
    """The network in evaluation as an ONNX model with input "x" and output "y"."""
    try:
        import onnx  # noqa: F401, the exporter needs it
    except ImportError as error:
        raise CannotRun(f"{error}; get it with: pip install 'dwsep[bench]'") from error
    target: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter which traces needs no further package, and fixes all shapes.
        torch.onnx.export(
            problem.copy_network(), (problem.x,), target, input_names=["x"], output_names=["y"], dynamo=False
        )
    return target.getvalue()
