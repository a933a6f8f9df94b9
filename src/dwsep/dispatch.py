"""Which kernel runs a problem, and why the others cannot: one set of predicates selects and explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from dwsep import _functorch
from dwsep.errors import unknown_name
from dwsep.geometry import ConvGeometry
from dwsep.kernels import reference
from dwsep.kernels.triton import support
from dwsep.ops import _depthwise_cuda, depthwise_conv, native_status, separable_conv

CPU_DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = ("auto", "cpu", "triton", "reference")
# The operators as they are called where nothing but autograd sees the call, and where not even that does.
CPU_DIRECT = {
    "depthwise_conv": {True: depthwise_conv.WITH_AUTOGRAD, False: depthwise_conv.WITHOUT_AUTOGRAD},
    "separable_conv": {True: separable_conv.WITH_AUTOGRAD, False: separable_conv.WITHOUT_AUTOGRAD},
}
# Those with Triton kernels, as they are called on a GPU.
TRITON_DIRECT = {"depthwise_conv": _depthwise_cuda.depthwise_conv, "separable_conv": separable_conv.WITH_AUTOGRAD}


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine at all, and why not."""

    name: str
    available: bool
    reasons: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        state = "available" if self.available else "not available: " + "; ".join(self.reasons)
        extra = ", ".join(f"{key}={value}" for key, value in self.details.items())
        return f"<{self.name}: {state}{' (' + extra + ')' if extra else ''}>"


@dataclass(frozen=True)
class Selection:
    """The kernel chosen for a problem, and for each backend passed over the reasons.

    ``kernel`` can be called wherever the choice was made; ``direct``, which takes less of the CPU's time, only where no
    compiler, mode, transform, autocast or tensor subclass has to see the call.
    """

    backend: str
    kernel: Callable[..., torch.Tensor]
    direct: Callable[..., torch.Tensor]
    refused: MappingProxyType[str, tuple[str, ...]]


def _cpu_status() -> BackendStatus:
    status = native_status()
    if not status.loaded:
        return BackendStatus("cpu", False, (f"native library: {status.reason}",))
    details = {"isa": status.isa, "supported_isas": status.supported_isas, "compiled_isas": status.compiled_isas}
    return BackendStatus("cpu", True, (), details)


def _triton_status() -> BackendStatus:
    reasons = support.machine_reasons()
    if reasons:
        return BackendStatus("triton", False, reasons)
    major, minor = torch.cuda.get_device_capability()
    details = {
        "triton": support.triton_version(),
        "device": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
    }
    return BackendStatus("triton", True, (), details)


def backends() -> dict[str, BackendStatus]:
    """What runs on this machine and why not: the reference, the native CPU library, Triton.

    Returns:
        A status per backend name, with ``available``, ``reasons`` and ``details``.

    Example:
        >>> import dwsep
        >>> dwsep.backends()["reference"].available
        True
    """
    reference_status = BackendStatus("reference", True, (), {"torch": torch.__version__})
    return {"cpu": _cpu_status(), "triton": _triton_status(), "reference": reference_status}


def _cpu_reasons(dtype: torch.dtype, device: str, functorch: bool) -> list[str]:
    reasons = list(_cpu_status().reasons)
    if functorch:
        reasons.append("torch.func or forward mode differentiates, which sees through plain PyTorch only")
    if device != "cpu":
        reasons.append(f"tensors are on {device!r}, the kernel runs on 'cpu'")
    if dtype not in CPU_DTYPES:
        reasons.append(f"dtype is {dtype}, the kernels take {' and '.join(map(str, CPU_DTYPES))}")
    return reasons


def _triton_reasons(op: str, geometry: ConvGeometry, dtype: torch.dtype, device: str, functorch: bool) -> list[str]:
    reasons = list(support.problem_reasons(geometry.ndim, dtype, device))
    if op not in TRITON_DIRECT:
        reasons.append(f"{op} has no Triton kernel")
    if functorch:
        reasons.append("torch.func or forward mode differentiates, which sees through plain PyTorch only")
    return reasons


# Instruction sets whose kernels multiply bfloat16.
_BFLOAT16_ISAS = ("avx512_bf16", "amx", "amx_fp32")

# Asked for once, at import, since a compiler cannot trace the question.
_CAPABILITIES = getattr(torch.cpu, "get_capabilities", dict)()


def _has_bfloat16_products() -> bool:
    """Whether the CPU multiplies bfloat16 matrices faster than float32 ones, which PyTorch's kernels use."""
    return bool(_CAPABILITIES.get("avx512_bf16") or _CAPABILITIES.get("amx_bf16"))


def stock_reasons(op: str, dtype: torch.dtype) -> list[str]:
    """Why PyTorch's own kernels are the faster choice for a problem that the native ones could run; measured."""
    halves = op == "separable_conv" and dtype == torch.bfloat16 and _has_bfloat16_products()
    if not halves or native_status().isa in _BFLOAT16_ISAS:
        return []
    return ["this CPU has bfloat16 products, and PyTorch's use of them is the faster"]


def _stock_cuda_reasons(geometry: ConvGeometry, channels_last: bool) -> list[str]:
    """Why PyTorch's own kernels are the better choice on a GPU for what Triton's could run; measured."""
    plain = geometry.ndim == 2 and max(geometry.kernel_size) <= 3 and set(geometry.dilation) == {1}
    if plain and channels_last:
        # The kernels take 1.1 to 1.7 times less time, a call takes the CPU 0.2 ms more: docs/results/nvidia-h200.md.
        return ["undilated 3x3 kernels in channels last: networks of them gain nothing, as calls cost the CPU more"]
    return []


def _decide(
    op: str,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    device: str,
    backend: str,
    gradient: bool,
    channels_last: bool,
    functorch: bool = False,
) -> Selection:
    if backend not in BACKENDS:
        if not isinstance(backend, str):
            raise TypeError(f"backend must be a name, got {backend!r} of type {type(backend).__name__}")
        raise unknown_name("backend", backend, BACKENDS)
    refused = {
        "cpu": tuple(_cpu_reasons(dtype, device, functorch)),
        "triton": tuple(_triton_reasons(op, geometry, dtype, device, functorch)),
    }
    if refused.get(backend):
        raise NotImplementedError(f"backend {backend!r} cannot run {op}: " + "; ".join(refused[backend]))
    if backend == "auto" and not refused["cpu"]:
        refused["cpu"] = tuple(stock_reasons(op, dtype))
    if backend == "cpu" or (backend == "auto" and not refused["cpu"]):
        del refused["cpu"]
        kernel = getattr(torch.ops.dwsep, op).default
        return Selection("cpu", kernel, CPU_DIRECT[op][gradient], MappingProxyType(refused))
    if backend == "auto" and not refused["triton"]:
        refused["triton"] = tuple(_stock_cuda_reasons(geometry, channels_last))
    if backend == "triton" or (backend == "auto" and not refused["triton"]):
        del refused["triton"]
        kernel = getattr(torch.ops.dwsep, op).default
        return Selection("triton", kernel, TRITON_DIRECT[op], MappingProxyType(refused))
    if backend == "reference":
        refused = {}
    kernel = getattr(reference, op)
    return Selection("reference", kernel, kernel, MappingProxyType(refused))


_cache: dict[tuple[Any, ...], Selection] = {}


def select(
    op: str,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    device: str,
    backend: str = "auto",
    *,
    gradient: bool = False,
    channels_last: bool = True,
) -> Selection:
    """Choose the kernel for a problem; the choice is made once per argument combination and remembered.

    Args:
        op: operator name, ``"depthwise_conv"`` or ``"separable_conv"``.
        geometry: kernel, stride, padding and dilation.
        dtype: of the tensors (autocast's, where it is on).
        device: device type, such as ``"cpu"``.
        backend: ``"auto"``, or the name of the one that must run.
        gradient: whether autograd will differentiate the result.
        channels_last: whether the input is in that layout, rather than contiguous.

    Returns:
        The kernel with its backend's name; ``refused`` tells why each backend before it cannot run.

    Raises:
        ArgumentError: an unknown backend name.
        NotImplementedError: the named backend cannot run this problem; the message gives its reasons.

    Example:
        >>> import torch
        >>> geometry = ConvGeometry.make(2, 3, padding="same")
        >>> select("separable_conv", geometry, torch.float64, "cpu").backend
        'reference'
    """
    if torch.compiler.is_compiling():
        return _decide(op, geometry, dtype, device, backend, gradient, channels_last)
    functorch = _functorch.differentiates()
    key = (op, geometry, dtype, device, backend, gradient, channels_last, functorch)
    try:
        return _cache[key]
    except (KeyError, TypeError):
        selection = _decide(op, geometry, dtype, device, backend, gradient, channels_last, functorch)
        if len(_cache) >= 4096:
            _cache.clear()
        _cache[key] = selection
        return selection
