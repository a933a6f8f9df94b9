"""What a network must compute: float64's results, and how far from them float32 may be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dwsep.bench.network_problem import NetworkProblem, logits, step, step_tensors
from dwsep.bench.verify import Truth

_RELATIVE = 1e-4  # of a tensor's norm: what float32 may cost a deep network
_MARGIN = 4  # times eager's own distance from float64
_COMMON = 0.9  # the share of parameters at which eager's distance counts as common
_NEGLIGIBLE = 1e-6  # of the largest gradient's norm: of a gradient that is zero but for rounding, nothing is left
_HOPELESS = 0.1  # eager's relative distance beyond which it is no float32 computation of the same function


def compute_network_truth(problem: NetworkProblem) -> Truth:
    """Runs a network in float64, and in eager float32 to learn how far rounding takes it.

    A tensor may be away from float64, in norm, by the largest of 1e-4 of its norm, four times the distance of eager's,
    and, of a gradient, four times the relative distance that nine in ten of eager's do not exceed: rounding is chance,
    and eager's may be lucky at one parameter. What is zero but for rounding, as the gradient of a bias before a batch
    norm, may be a millionth of the largest gradient.

    Raises:
        RuntimeError: Eager's output is nowhere near float64's, so that nothing could be verified.
    """
    names, exact = _run(problem.copy_network().double(), problem, torch.float64)
    _, eager = _run(problem.copy_network(), problem, torch.float32)
    norms = [float(value.norm()) for value in exact]
    distances = [float((tensor.double() - value).norm()) for tensor, value in zip(eager, exact, strict=True)]
    if not distances[0] <= _HOPELESS * norms[0]:
        raise RuntimeError(
            f"eager's output is {distances[0] / max(norms[0], 1e-300):.1g} of its norm from float64's: the network is "
            "random, or overflows, and nothing can be verified"
        )
    largest = max(norms[1:], default=0.0)
    pairs = list(zip(distances[1:], norms[1:]))
    relative = sorted(distance / norm for distance, norm in pairs if norm > _NEGLIGIBLE * largest)
    common = relative[int(_COMMON * (len(relative) - 1))] if relative else 0.0
    allowed = [max(_RELATIVE * norms[0], _MARGIN * distances[0])]
    for distance, norm in pairs:
        rounding = max(_RELATIVE, _MARGIN * common) * norm
        allowed.append(max(rounding, _MARGIN * distance, _NEGLIGIBLE * largest))
    return Truth(tuple(names), tuple(exact), tuple(allowed), in_norm=True)


def _run(network: nn.Module, problem: NetworkProblem, dtype: torch.dtype) -> tuple[list[str], list[Tensor]]:
    """The names of the tensors that are compared, and the tensors."""
    x = problem.x.to(dtype)
    if not problem.task.training:
        with torch.no_grad():
            return ["the output"], [logits(network, x)]
    parameters = list(network.parameters())
    with torch.enable_grad():
        y = step(lambda x: logits(network, x), parameters, x, problem.grad.to(dtype))()
    names = [f"the gradient of {name}" for name, p in network.named_parameters() if p.grad is not None]
    return ["the output", *names], step_tensors(parameters)(y)
