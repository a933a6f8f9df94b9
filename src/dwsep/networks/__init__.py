"""Networks built from our layers, and their dense twins for comparison."""

from dwsep.networks.mobilenet_v1 import MobileNetV1
from dwsep.networks.registry import create, names, option_names

__all__ = ["MobileNetV1", "create", "names", "option_names"]
