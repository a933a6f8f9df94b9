"""A network with its input and the gradient of its output: the same for every peer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.analysis.cost import count
from dwsep.bench.networks import NetworkTask, create
from dwsep.errors import ArgumentError

# Random in training, so that no two peers could agree: they stay in evaluation.
_RANDOM_LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "DropPath", "StochasticDepth", "DropBlock2d")


@dataclass(frozen=True)
class NetworkProblem:
    """What every peer of a network's task gets.

    Attributes:
        task: What is measured.
        network: In the task's mode and dtype, in float32 where autocast is what makes it another; peers copy it.
        x: (N, 3, size, size), in the network's dtype.
        grad: (N, classes), the gradient of the loss, which is linear, with respect to the output.
        macs: Multiply-adds of the convolutions and linear layers of a forward pass of the batch.
    """

    task: NetworkTask
    network: nn.Module
    x: Tensor
    grad: Tensor
    macs: int

    def copy_network(self) -> nn.Module:
        """A network of a peer's own."""
        return copy.deepcopy(self.network)

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """What a forward runs in: autocast to bfloat16 where the task is that, and it is not asked to stay away."""
        return torch.autocast("cpu", torch.bfloat16, enabled=enabled and self.task.autocasts)


def make_network_problem(task: NetworkTask, seed: int = 0) -> NetworkProblem:
    """Draws a network's weights and its tensors, the same in every process.

    Weights of convolutions are what the library draws. Those of norms, all biases, and running statistics are random,
    too, as after a training: with ones and zeros, a peer that leaves them out would pass. Dropout and stochastic depth
    are off.

    Args:
        task: What is measured.
        seed: Of everything random.

    Raises:
        ArgumentError: The network is no classifier of images with three channels.
    """
    case = task.case
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = create(case.network).eval()
        _randomise(network)
        x = torch.randn(case.batch, 3, case.size, case.size)
        macs = case.batch * count(network, x[:1]).macs
        classes = logits(network, x[:1]).shape[1]
        grad = torch.randn(case.batch, classes)
    network.train(task.training)
    for module in network.modules():
        if type(module).__name__ in _RANDOM_LAYERS:
            module.eval()
    dtype = torch.float32 if task.autocasts else getattr(torch, task.dtype)
    return NetworkProblem(task, network.to(dtype), x.to(dtype), grad.to(dtype), macs)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """Runs a network that must return (N, classes).

    Raises:
        ArgumentError: It returns something else.
    """
    y = network(x)
    if not isinstance(y, Tensor) or y.dim() != 2:
        what = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ArgumentError(f"networks: a classifier returns (N, classes), this one returns {what}")
    return y


def step(
    network: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor, grad: Tensor
) -> Callable[[], Tensor]:
    """Makes a call that runs forward and backward, and leaves the gradients in the parameters."""

    def call() -> Tensor:
        for parameter in parameters:
            parameter.grad = None  # as zero_grad does
        y = network(x)
        y.backward(grad.to(y.dtype))
        return y

    return call


def step_tensors(parameters: Sequence[Tensor]) -> Callable[[Any], list[Tensor]]:
    """Makes a function of a step's output that returns it and the gradients, of those parameters that have one."""
    return lambda y: [y.detach(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Counts the bytes that a training step's forward saves for its backward, parameters, buffers and input aside.

    Args:
        network: In training mode.
        x: (N, 3, size, size).

    Returns:
        The size of the distinct memory that autograd holds when the forward has ended.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers(), x)}
    seen: dict[int, tuple[int, Tensor]] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = network(x)
    del y
    return sum(size for size, _ in seen.values())


def _randomise(network: nn.Module) -> None:
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith("running_mean") or (tensor.dim() == 1 and name.endswith("bias")):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)  # weights of norms, scales of layers
