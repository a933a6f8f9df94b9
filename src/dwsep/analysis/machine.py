"""What machine and which versions a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from dwsep.analysis.allocator import allocator_name, allocator_settings, allocator_variables

_VERSIONED = (
    "torch",
    "numpy",
    "typer",
    "rich",
    "safetensors",
    "pydantic",
    "torchmetrics",
    "pillow",
    "jinja2",
    "matplotlib",
    "triton",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
)
_RELEVANT_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16", "neon")


def describe_machine() -> dict[str, Any]:
    """Describes the processor, the operating system, the memory allocator and the threads PyTorch uses.

    Returns:
        Entries that can be written as JSON: "cpu", "architecture", "system", "logical_cores", "usable_cores",
        "caches" (level and type -> size), "flags" (instruction sets), "torch_threads", "torch_cpu_capability",
        "glibc", "allocator", "allocator_settings" (what this process has set) and "malloc_variables". What cannot be
        found out is None or empty.
    """
    import torch

    libc, libc_version = platform.libc_ver()
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "caches": _caches(),
        "flags": _cpu_flags(),
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "glibc": libc_version if libc == "glibc" else None,
        "allocator": allocator_name(),
        "allocator_settings": allocator_settings(),
        "malloc_variables": allocator_variables(),
    }


def describe_versions() -> dict[str, str]:
    """Lists the versions of Python and of the packages dwsep can use.

    Returns:
        Package name -> version, for those that are installed.
    """
    import dwsep  # knows its version even where it runs from a source tree that is not installed

    versions = {"dwsep": dwsep.__version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_info(*keys: str) -> str | None:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None


def _cpu_model() -> str:
    return _cpu_info("model name", "Model") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    flags = (_cpu_info("flags", "Features") or "").split()
    return [flag for flag in flags if flag.startswith(_RELEVANT_FLAGS)]


def usable_cores() -> int | None:
    """Counts the logical cores this process may run on; None where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _caches() -> dict[str, str]:
    caches: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / entry).strip() for entry in ("level", "type", "size"))
        if level and size:
            caches[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return caches
