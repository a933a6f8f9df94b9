"""The stage operators on a GPU: Triton's kernels where they run, else what the operators do everywhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dwsep.kernels.triton import support
from dwsep.ops._library import LIBRARY

# What each operator runs for the dispatch key CUDA; the tests call them on other devices, too.
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}


def implement(
    name: str,
    elsewhere: Callable[..., Any],
    module: str,
    function: str,
    *,
    x: int = 0,
    weight: int | None = None,
    runs: Callable[..., bool] = support.runs,
    finish: Callable[..., Any] | None = None,
) -> None:
    """Let ``dwsep::{name}`` run a function of ``dwsep.kernels.triton`` on tensors on a GPU.

    Args:
        name: of the operator, which is defined.
        elsewhere: what it does where the kernels do not run.
        module: of ``dwsep.kernels.triton``; imported by the first call, because it needs triton.
        function: in there; takes the operator's arguments.
        x: position of the tensor that ``runs`` is asked about.
        weight: position of a weight that it is asked about, too.
        runs: whether the kernels run.
        finish: makes the operator's results of the function's, which it takes first, and of the arguments.
    """

    asked = (x,) if weight is None else (x, weight)

    def call(*arguments: Any) -> Any:
        if not runs(*(arguments[position] for position in asked)):
            return elsewhere(*arguments)
        found = getattr(importlib.import_module(f"dwsep.kernels.triton.{module}"), function)(*arguments)
        return found if finish is None else finish(found, *arguments)

    IMPLEMENTATIONS[name] = call
    LIBRARY.impl(name, call, "CUDA")
