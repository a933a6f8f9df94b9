"""The networks that are measured: names of timm and torchvision, and what is measured of each."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dwsep.bench.registry import DTYPES, Task
from dwsep.errors import ArgumentError, unknown_name

if TYPE_CHECKING:
    from torch import nn

NETWORKS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "legacy_xception",
    "torchvision/mobilenet_v2",
    "convnext_atto",
    "mixnet_s",
    "mobileone_s0",
    "mobilenetv4_conv_small",
)
_PREFIX = "torchvision/"
_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class NetworkCase:
    """A network and its input.

    Attributes:
        network: Its name in timm, or "torchvision/" and its name there.
        batch: N of the input (N, 3, size, size).
        size: Height and width of the input, in pixels.
        name: Unique name, the batch left out: the network's and the size.
        kind: Always "network".
    """

    network: str
    batch: int
    size: int
    name: str
    kind: str = "network"

    @staticmethod
    def make(network: str, batch: int, size: int) -> NetworkCase:
        """Makes a case and names it."""
        return NetworkCase(network, batch, size, f"{network}@{size}")


@dataclass(frozen=True)
class NetworkTask:
    """One comparison of a whole network; it has the fields of a layer's :class:`~dwsep.bench.registry.Task`.

    Attributes:
        case: The network.
        training: Whether forward and backward are measured, in training mode, or the forward alone, in evaluation.
        variant: Always empty: a network is measured as its library builds it.
        dtype: Of parameters and input, "float32" or "bfloat16"; in training "bfloat16" is autocast to it, of parameters
            and an input in float32.
    """

    case: NetworkCase
    training: bool = False
    variant: str = ""
    dtype: str = "float32"

    @property
    def autocasts(self) -> bool:
        """Whether the forward runs under autocast to bfloat16."""
        return self.training and self.dtype == "bfloat16"

    @property
    def key(self) -> str:
        """Tells the task from every other one."""
        mode = "training" if self.training else "inference"
        return f"network {self.case.name} batch {self.case.batch} {mode} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """The task as JSON can hold it."""
        return asdict(self)

    @staticmethod
    def from_json(entry: dict[str, Any]) -> NetworkTask:
        """The inverse of :meth:`to_json`."""
        return NetworkTask(NetworkCase(**entry["case"]), entry["training"], entry["variant"], entry["dtype"])


AnyTask = Task | NetworkTask


def task_from_json(entry: dict[str, Any]) -> AnyTask:
    """A layer's or a network's task, whichever it was before ``to_json``."""
    return NetworkTask.from_json(entry) if entry["case"]["kind"] == "network" else Task.from_json(entry)


def plan(
    names: Sequence[str] = (),
    *,
    training: bool = False,
    dtype: str = "float32",
    batches: Sequence[int] = (),
    size: int | None = None,
) -> list[NetworkTask]:
    """Lists the comparisons of a run.

    Args:
        names: Networks; empty for :data:`NETWORKS`.
        training: Whether a training step is measured, or inference.
        dtype: "float32" or "bfloat16", which in training is autocast to it.
        batches: Batch sizes; empty for 8 in training, 1 and 8 at inference.
        size: Height and width of the input in pixels; None for what each network was made for.

    Returns:
        The tasks, those of one batch next to each other.

    Raises:
        ArgumentError: An unknown network or dtype.
        ImportError: The library that has a network is not installed (extra "bench").
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    sizes = {name: own_size(name) for name in names or NETWORKS}
    return [
        NetworkTask(NetworkCase.make(name, batch, size or own), training, dtype=dtype)
        for batch in sorted(set(batches or ((8,) if training else (1, 8))))
        for name, own in sizes.items()
    ]


def own_size(name: str) -> int:
    """The height and width in pixels for which a network was made.

    Raises:
        ArgumentError: No such network; the message has names like it.
        ImportError: The library that has it is not installed.
    """
    if name.startswith(_PREFIX):
        plain, models = name.removeprefix(_PREFIX), _library("torchvision").models
        _refuse_unknown(name, plain, models.list_models(module=models), _PREFIX)
        return 299 if plain == "inception_v3" else _DEFAULT_SIZE
    timm = _library("timm")
    _refuse_unknown(name, name.partition(".")[0], timm.list_models(), "")
    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model_pretrained(name) else None
    return _DEFAULT_SIZE if config is None else config.input_size[-1]


def create(name: str) -> nn.Module:
    """Makes a network with random weights, which torch's global random state decides."""
    if name.startswith(_PREFIX):
        return _library("torchvision").models.get_model(name.removeprefix(_PREFIX), weights=None)
    return _library("timm").create_model(name, pretrained=False)


def _library(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        what = "networks named 'torchvision/...'" if package == "torchvision" else "networks named without a prefix"
        raise ImportError(
            f"{what} come from {package} ({error}); get it with: pip install 'dwsep[bench]'", name=error.name
        ) from error


def _refuse_unknown(name: str, plain: str, known: Sequence[str], prefix: str) -> None:
    if plain in known:
        return
    alike = difflib.get_close_matches(plain, known, n=4, cutoff=0.5)
    hint = f"close to it: {', '.join(repr(prefix + other) for other in alike)}" if alike else "nothing is close to it"
    source = "torchvision's classifiers" if prefix else "timm"
    raise ArgumentError(f"networks: {source} has no {name!r}; {hint}")
