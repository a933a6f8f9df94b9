"""Several processes that train one network: what one of them knows of the others."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone by default.

    Args:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Processes:
        """Meet the processes that torchrun started beside this one; alone where it did not start it.

        Returns:
            This process among them. They talk over gloo; with one GPU each, over NCCL.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
            if gpus:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if gpus else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Part from the others, at the end."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as it is to be called in training, so that gradients are the means over all processes."""
        if self.size == 1:
            return model
        # A kernel of one channel has one order in memory and two sets of strides; the copy that this warns of is none.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # A sum of more than two depends on where in its bucket an element lies, and after its first step it orders the
        # buckets anew, so that a run which goes on would add in another order; not so where it looks for parameters
        # without a gradient.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=self.size > 2)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size == 1:
            return tensor
        result = tensor.clone()
        dist.all_reduce(result)
        return result

    def gather(self, values: list[float]) -> list[float]:
        """The values of all processes, those of the first one first; how many each has may differ."""
        if self.size == 1:
            return values
        found: list[list[float] | None] = [None] * self.size
        dist.all_gather_object(found, values)
        return [value for part in found for value in part or ()]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Go on when all have come so far."""
        if self.size > 1:
            dist.barrier()
