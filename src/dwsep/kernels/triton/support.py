"""What the Triton kernels run on and why not: the predicates that dispatch explains and the operators obey."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import torch

MINIMUM_TRITON = (3, 6)  # what the oldest supported torch, 2.11, brings; 3.2 does not compile these kernels
MINIMUM_CAPABILITY = (7, 5)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Whether kernels run that do the work of several operators: where it is asked for, until they have been timed on a GPU.
FUSED = os.environ.get("DWSEP_CUDA_FUSED", "0") not in ("", "0")


def triton_version() -> str | None:
    """The version of the installed package ``triton``, which is not imported for it; None without one."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a build of one's own on the path
        return "0"


def _package_reasons() -> tuple[str, ...]:
    version = triton_version()
    if version is None:
        return ("the package triton is not installed",)
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MINIMUM_TRITON:
        return (f"triton is {version}, the kernels need {'.'.join(map(str, MINIMUM_TRITON))}",)
    return ()


# Plain objects rather than cached functions: torch.compile, which traces the choice of a kernel, warns of those.
_PACKAGE_REASONS = _package_reasons()
_capabilities: dict[int, tuple[str, ...]] = {}


def _capability_reasons(device: int) -> tuple[str, ...]:
    if device not in _capabilities:
        _capabilities[device] = _capability_refusals(device)
    return _capabilities[device]


def _capability_refusals(device: int) -> tuple[str, ...]:
    capability = torch.cuda.get_device_capability(device)
    if capability >= MINIMUM_CAPABILITY:
        return ()
    have, need = (".".join(map(str, pair)) for pair in (capability, MINIMUM_CAPABILITY))
    return (f"the GPU's compute capability is {have}, the kernels need {need}",)


def machine_reasons() -> tuple[str, ...]:
    """Why the kernels cannot run on this machine, whatever the problem; empty where they can."""
    reasons = _PACKAGE_REASONS
    if torch.version.hip is not None:
        return (*reasons, "this torch is built for ROCm, the kernels are for CUDA")
    if not torch.cuda.is_available():
        return (*reasons, "torch sees no CUDA device")
    return (*reasons, *_capability_reasons(torch.cuda.current_device()))


def problem_reasons(ndim: int, dtype: torch.dtype, device: str) -> tuple[str, ...]:
    """Why the kernels cannot run a problem of ``ndim`` spatial axes; empty where they can."""
    reasons = list(machine_reasons())
    if device != "cuda":
        reasons.append(f"tensors are on {device!r}, the kernels run on 'cuda'")
    if dtype not in DTYPES:
        reasons.append(f"dtype is {dtype}, the kernels take {', '.join(map(str, DTYPES))}")
    if ndim > 2:
        reasons.append(f"the convolution has {ndim} spatial axes, the kernels take 1 or 2")
    return tuple(reasons)


def allows_tf32() -> bool:
    """Whether PyTorch's own convolutions of float32 may take TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def compiles(x: torch.Tensor) -> bool:
    """Whether Triton compiles for the GPU that ``x`` is on, whatever its type."""
    return torch.version.hip is None and not _PACKAGE_REASONS and not _capability_reasons(x.device.index)


def runs(x: torch.Tensor) -> bool:
    """Whether the kernels run a problem with this input, which is on a GPU."""
    return x.dim() <= 4 and x.dtype in DTYPES and compiles(x)
