"""What a peer hands over: something to call, or the reason why there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class CannotRun(Exception):
    """A peer cannot run a task; the message is the reason."""


def _as_is(result: Any) -> Sequence[Tensor]:
    return result if isinstance(result, (tuple, list)) else (result,)


@dataclass(frozen=True)
class Built:
    """A peer that is ready to run one task.

    Attributes:
        call: Runs the task once, and returns whatever the peer's own users would get.
        tensors: Turns what ``call`` returned into the output (N, K, *spatial), and in training the gradients of x and
            of the weights in their own shapes.
        saved_bytes: What a training step's forward saves for its backward; None where that was not counted.
    """

    call: Callable[[], Any]
    tensors: Callable[[Any], Sequence[Tensor]] = _as_is
    saved_bytes: int | None = None
