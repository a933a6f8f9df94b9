"""The operators ``torch.ops.dwsep.*``, one file each. Importing defines them, then loads the native library."""

from dwsep.ops import depthwise_conv, separable_conv, separable_conv_packed
from dwsep.ops._library import NativeStatus, native_status

native_status()

__all__ = ["NativeStatus", "depthwise_conv", "native_status", "separable_conv", "separable_conv_packed"]
