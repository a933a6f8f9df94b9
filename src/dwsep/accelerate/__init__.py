"""Make a network that exists already faster: find its chains, run them fused, and undo it."""

from dwsep.accelerate._api import accelerate_, revert_
from dwsep.accelerate._report import AccelerationReport

__all__ = ["AccelerationReport", "accelerate_", "revert_"]
