"""What a network must compute: float64's results, and how far from them a dtype may be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dwsep.bench.network_problem import NetworkProblem, logits, step, step_tensors
from dwsep.bench.verify import Truth

_RELATIVE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a tensor's norm: what rounding may cost a deep network
_MARGIN = 4  # times eager's own distance from float64
_DRAWS, _ROUNDING = 4, {"float32": 2.0**-21, "bfloat16": 2.0**-9}  # a few times what rounding does to each layer
# Of the largest gradient's norm: of a gradient that is zero but for rounding, nothing is left.
_NEGLIGIBLE = {"float32": 1e-6, "bfloat16": 1e-3}
# Eager's relative distance beyond which it is no computation of the same function.
_HOPELESS = {"float32": 0.1, "bfloat16": 0.3}


def compute_network_truth(problem: NetworkProblem) -> Truth:
    """Runs a network in float64, and eager in its own dtype to learn how far rounding takes it.

    A tensor may be away from float64, in norm, by 1e-4 of its norm (2e-2 in bfloat16) or four times the distance of
    eager's, whichever is larger. In training, eager's is the largest of a few runs whose parameters differ by 2^-21 of
    themselves (2^-9): where the input of a ReLU is zero but for rounding, its gradient passes or not, which shows in
    all layers before it, and one run may be lucky at all of them. What is zero but for rounding, as the gradient of a
    bias before a batch norm, may be a millionth (thousandth) of the largest gradient.

    Raises:
        RuntimeError: Eager's output is nowhere near float64's, so that nothing could be verified.
    """
    dtype = problem.task.dtype
    names, exact = _run(problem.copy_network().double(), problem, torch.float64)
    norms = [float(value.norm()) for value in exact]

    def distances(network: nn.Module) -> list[float]:
        tensors = _run(network, problem, problem.x.dtype)[1]
        return [float((tensor.double() - value).norm()) for tensor, value in zip(tensors, exact, strict=True)]

    away = distances(problem.copy_network())
    if not away[0] <= _HOPELESS[dtype] * norms[0]:
        raise RuntimeError(
            f"eager's output is {away[0] / max(norms[0], 1e-300):.1g} of its norm from float64's: the network is "
            "random, or overflows, and nothing can be verified"
        )
    for seed in range(_DRAWS if problem.task.training else 0):
        away = [max(pair) for pair in zip(away, distances(_perturbed(problem.copy_network(), seed, _ROUNDING[dtype])))]
    negligible = _NEGLIGIBLE[dtype] * max(norms[1:], default=0.0)
    allowed = [max(_RELATIVE[dtype] * norm, _MARGIN * distance, negligible) for norm, distance in zip(norms, away)]
    return Truth(tuple(names), tuple(exact), tuple(allowed), in_norm=True)


def _perturbed(network: nn.Module, seed: int, rounding: float) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + rounding * torch.randn(parameter.shape, generator=generator))
    return network


def _run(network: nn.Module, problem: NetworkProblem, dtype: torch.dtype) -> tuple[list[str], list[Tensor]]:
    """The names of the tensors that are compared, and the tensors."""
    x = problem.x.to(dtype)
    if not problem.task.training:
        with torch.no_grad():
            return ["the output"], [logits(network, x)]
    parameters = list(network.parameters())

    def run(x: Tensor) -> Tensor:
        with problem.autocast(dtype is not torch.float64):
            return logits(network, x)

    with torch.enable_grad():
        y = step(run, parameters, x, problem.grad.to(dtype))()
    names = [f"the gradient of {name}" for name, p in network.named_parameters() if p.grad is not None]
    return ["the output", *names], step_tensors(parameters)(y)
