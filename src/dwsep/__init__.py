"""dwsep: depthwise separable convolution for PyTorch, as fast as its arithmetic promises."""

from importlib.metadata import PackageNotFoundError, version

from dwsep import convert, functional, networks, nn, ops, weights
from dwsep.accelerate import AccelerationReport, accelerate_, revert_
from dwsep.analysis.api import analyze
from dwsep.analysis.cost_report import CostReport
from dwsep.convert import SeparateConfig, SeparationReport, merge_, separate_
from dwsep.dispatch import backends
from dwsep.errors import ArgumentError
from dwsep.ops import release_memory

try:
    __version__ = version("dwsep")
except PackageNotFoundError:  # a source folder on the path, not installed
    __version__ = "0+unknown"

__all__ = [
    "AccelerationReport",
    "ArgumentError",
    "CostReport",
    "SeparateConfig",
    "SeparationReport",
    "__version__",
    "accelerate_",
    "analyze",
    "backends",
    "convert",
    "functional",
    "merge_",
    "networks",
    "nn",
    "ops",
    "release_memory",
    "revert_",
    "separate_",
    "weights",
]
