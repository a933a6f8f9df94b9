"""The ``dwsep`` operator namespace, and the native library that implements it on the CPU."""

from __future__ import annotations

import ctypes
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

LIBRARY = torch.library.Library("dwsep", "DEF")
LIBRARY_FILE = "libdwsep.so"


@dataclass(frozen=True)
class NativeStatus:
    """Whether the native library is in use, and on which instruction set."""

    loaded: bool
    reason: str
    path: str | None = None
    isa: str | None = None
    compiled_isas: tuple[str, ...] = ()
    supported_isas: tuple[str, ...] = ()


def _candidates() -> list[Path]:
    override = os.environ.get("DWSEP_LIBRARY")
    if override:
        return [Path(override)]
    # An editable install keeps its Python files in the source tree and the built library in site-packages.
    roots = (Path(__file__).parents[1], Path(sysconfig.get_paths()["platlib"]) / "dwsep")
    return [root / "_native" / LIBRARY_FILE for root in roots]


def _load() -> NativeStatus:
    if os.environ.get("DWSEP_DISABLE_NATIVE", "0") not in ("", "0"):
        return NativeStatus(False, "switched off by the environment variable DWSEP_DISABLE_NATIVE")
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        if os.environ.get("DWSEP_LIBRARY"):
            raise FileNotFoundError(f"DWSEP_LIBRARY names no file: {os.environ['DWSEP_LIBRARY']!r}")
        return NativeStatus(
            False, "not part of this install: it was installed with DWSEP_NO_NATIVE=1, or runs from a source folder"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return NativeStatus(False, f"{path} cannot be loaded: {error}", str(path))
    return _choose_isa(path)


def _choose_isa(path: Path) -> NativeStatus:
    global _native
    _native = native = ctypes.CDLL(str(path))
    for name in ("dwsep_compiled_isas", "dwsep_supported_isas", "dwsep_current_isa"):
        getattr(native, name).restype = ctypes.c_char_p
    native.dwsep_set_isa.argtypes = [ctypes.c_char_p]
    compiled = tuple(native.dwsep_compiled_isas().decode().split(","))
    supported = tuple(native.dwsep_supported_isas().decode().split(","))
    wanted = os.environ.get("DWSEP_ISA", "")
    if wanted and native.dwsep_set_isa(wanted.encode()) != 0:
        fault = "this CPU cannot run it" if wanted in compiled else "this build has no such path"
        raise RuntimeError(f"DWSEP_ISA={wanted!r}: {fault}; supported here: {', '.join(supported)}")
    return NativeStatus(True, "loaded", str(path), native.dwsep_current_isa().decode(), compiled, supported)


_status: NativeStatus | None = None
_native: ctypes.CDLL | None = None


def packed_separable_size(
    inner_channels: int, taps: int, out_channels: int, *, depth_multiplier: int = 1, bfloat16: bool
) -> int:
    """Floats that ``dwsep::pack_separable_weights`` returns, which the kernels in use decide."""
    if _native is None:
        raise NotImplementedError(f"packed weights need the native library: {native_status().reason}")
    size = _native.dwsep_packed_separable_size
    size.argtypes, size.restype = [ctypes.c_int64] * 4 + [ctypes.c_int], ctypes.c_int64
    return size(inner_channels, depth_multiplier, taps, out_channels, bfloat16)


def packed_pointwise_size(channels: int, out_channels: int) -> int:
    """Floats that ``dwsep::pack_pointwise_weights`` returns, which the kernels in use decide."""
    if _native is None:
        raise NotImplementedError(f"packed weights need the native library: {native_status().reason}")
    size = _native.dwsep_packed_pointwise_size
    size.argtypes, size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    return size(channels, out_channels)


def release_memory() -> int:
    """Give back to the system the memory that the native library keeps of freed tensors; returns its bytes.

    The library's large results (1 MiB and more) come from memory that it keeps when they are freed, because fresh
    pages cost a training step up to a third of its time. Pieces unused for 8,192 such results go back by themselves;
    tensors that are alive are not touched, and the next call takes new memory where it needs some. The environment
    variable ``DWSEP_KEEP_MEMORY=0``, set before ``dwsep`` is imported, takes every result from PyTorch's allocator.

    Example:
        >>> import dwsep
        >>> dwsep.release_memory() >= 0
        True
    """
    if _native is None:
        return 0
    _native.dwsep_release_memory.argtypes, _native.dwsep_release_memory.restype = [], ctypes.c_int64
    return _native.dwsep_release_memory()


def native_status() -> NativeStatus:
    """What became of loading the native library, which happens when ``dwsep`` is imported.

    Example:
        >>> import dwsep
        >>> dwsep.ops.native_status().reason in ("", None)
        False
    """
    global _status
    if _status is None:
        _status = _load()
    return _status
