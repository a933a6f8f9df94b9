"""What dwsep is compared with, and dwsep itself: each makes a call out of a problem, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dwsep.bench.peers import _compile, _eager, _onnxruntime, _openvino, _ours
from dwsep.bench.peers._built import Built, CannotRun
from dwsep.bench.peers._networks import NETWORK_BUILDERS
from dwsep.bench.problem import Problem

__all__ = ["NETWORK_BUILDERS", "OURS", "PEERS", "Built", "CannotRun", "Peer"]

OURS = "dwsep"


@dataclass(frozen=True)
class Peer:
    """A way to run a task.

    Attributes:
        label: Heading of its column.
        build: Makes it ready to run a layer, or raises :class:`CannotRun`; for networks :data:`NETWORK_BUILDERS` does.
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
