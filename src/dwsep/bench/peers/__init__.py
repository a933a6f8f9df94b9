"""What dwsep is compared with, and dwsep itself: each makes a call out of a problem, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dwsep.bench.peers import _compile, _eager, _onnxruntime, _openvino, _ours
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.problem import Problem

__all__ = ["OURS", "PEERS", "Built", "CannotRun", "Peer"]

OURS = "dwsep"


@dataclass(frozen=True)
class Peer:
    """A way to run a task.

    Attributes:
        label: Heading of its column.
        build: Makes it ready to run a problem, or raises :class:`CannotRun`.
    """

    label: str
    build: Callable[[Problem], Built]


PEERS: dict[str, Peer] = {
    OURS: Peer("dwsep", _ours.build),
    "nchw": Peer("NCHW", _eager.build_nchw),
    "channels_last": Peer("NHWC", _eager.build_channels_last),
    "compile": Peer("compile", _compile.build),
    "onnxruntime": Peer("ORT", _onnxruntime.build),
    "openvino": Peer("OpenVINO", _openvino.build),
}
