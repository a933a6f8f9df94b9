"""``torch.compile``, with what it does best: weights frozen at inference, activations channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dwsep.bench.peers._built import Built
from dwsep.bench.peers._eager import CHANNELS_LAST, make_network, training_step
from dwsep.bench.problem import Problem


def build(problem: Problem) -> Built:
    """Compiles the task's network, which its first call does."""
    import torch

    memory_format = CHANNELS_LAST.get(problem.task.case.ndim, torch.contiguous_format)
    network = make_network(problem).to(memory_format=memory_format)  # type: ignore[call-overload]
    x, grad = (tensor.clone(memory_format=memory_format) for tensor in (problem.x, problem.grad))
    compiled = compile_network(network, fullgraph=True)
    if problem.task.training:
        call = training_step(compiled, x, list(network.parameters()), grad)
    else:

        def call() -> Any:
            return compiled(x)

    first_call(call, problem.task.training)
    return Built(call)


def compile_network(network: Any, *, fullgraph: bool) -> Any:
    """Hands a network to the compiler, which has forgotten all others."""
    import torch
    import torch._dynamo

    # Every network shares one forward method, and after a few recompilations of a method dynamo gives up on it.
    torch._dynamo.reset()
    return torch.compile(network, fullgraph=fullgraph, dynamic=False)


def first_call(call: Callable[[], object], training: bool) -> None:
    """Makes the call that compiles."""
    import torch._inductor.config

    # One compiling thread: a pool of processes would stay around while others are timed.
    with torch._inductor.config.patch(freezing=not training, compile_threads=1):  # type: ignore[attr-defined]
        call()
