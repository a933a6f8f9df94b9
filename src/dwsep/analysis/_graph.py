"""The backward's nodes and the calls they belong to, found while the forward runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class Nodes:
    """Finds the nodes of autograd's graph that came since the last look, from what is passed on in between."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()  # kept alive, so that no two ever have one identity

    def new(self, tree: Any) -> list[Any]:
        """The nodes behind some tensors that no look has found before, the last to run in the forward first."""
        found = []
        waiting = [leaf.grad_fn for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
        while waiting:
            node = waiting.pop()
            if node is None or node in self.seen:
                continue
            self.seen.add(node)
            found.append(node)
            waiting.extend(successor for successor, _ in node.next_functions)
        return found


def watch(node: Any, before: Callable[[], None], after: Callable[[], None] | None = None) -> None:
    """Has a node of the graph call something right before and right after it runs."""
    node.register_prehook(lambda grads: before())
    if after is not None:
        node.register_hook(lambda inputs, outputs: after())


def accumulates(node: Any) -> bool:
    """Whether it only adds a gradient to a parameter's; it runs as soon as there is one."""
    return "AccumulateGrad" in node.name()


def name_of(node: Any) -> str:
    """A node's name without what numbers it, as operators are named: "AddBackward0" -> "add"."""
    return node.name().rpartition("::")[2].partition("Backward")[0].lower()
