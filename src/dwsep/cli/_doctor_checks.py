"""What ``dwsep doctor`` checks; nothing here prints."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# What the extras of the package bring, by the name under which it is imported.
EXTRAS = {
    "train": ("safetensors", "pydantic", "torchmetrics", "PIL"),
    "bench": ("onnx", "onnxruntime", "openvino", "matplotlib"),
    "report": ("jinja2", "matplotlib"),
}
_SELFTEST_SECONDS = 120
_FRESH_MEMORY_OVERHEAD = 0.2  # beyond this, page faults are worth doing something about
_TILES_GAIN = 1.2  # beyond this, float32 in tiles is worth asking for


@dataclass(frozen=True)
class Check:
    """Outcome of one check: "ok", "warning" (works, but not as fast or complete as it could) or "failed"."""

    name: str
    status: str
    detail: str


def run_checks(on_step: Callable[[str], None] = lambda step: None) -> list[Check]:
    """Runs every check; none of them raises.

    Args:
        on_step: Called with what is being checked before each slow step.

    Returns:
        The outcomes in the order in which they are shown.
    """
    checks = [_check_torch(), _check_native(), _check_threads()]
    for backend, isa in _selftests():
        on_step(f"self-test of {_selftest_name(backend, isa)}")
        checks.append(_check_selftest(backend, isa))
    if _may_take_tiles():
        on_step("float32 in tiles")
        checks.append(_check_tiles())
    on_step("what fresh memory costs")
    checks.append(_check_fresh_memory())
    checks += _check_extras()
    on_step("embedded images")
    checks.append(_check_data())
    return checks


def _check_torch() -> Check:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        return Check("PyTorch", "failed", f"{torch.__version__} is too old: dwsep needs 2.11 or later")
    return Check("PyTorch", "ok", torch.__version__)


def _check_native() -> Check:
    import dwsep

    status = dwsep.ops.native_status()
    if status.loaded:
        forced = " (forced by DWSEP_ISA)" if os.environ.get("DWSEP_ISA") else ""
        return Check("native library", "ok", f"{status.path}, runs on {status.isa}{forced}")
    # A library that is there but cannot be used is a fault; an install without one was asked for.
    if status.path is not None:
        return Check("native library", "failed", status.reason)
    return Check("native library", "warning", f"{status.reason}; the slower reference kernels are used")


def _check_threads() -> Check:
    import torch

    from dwsep.analysis.machine import usable_cores

    threads, cores = torch.get_num_threads(), usable_cores()
    if cores is not None and threads > cores:
        return Check(
            "threads", "warning", f"PyTorch uses {threads} threads on {cores} usable cores: set OMP_NUM_THREADS={cores}"
        )
    return Check("threads", "ok", f"PyTorch uses {threads} of {cores} usable cores")


def _selftests() -> Iterator[tuple[str, str | None]]:
    import dwsep

    status = dwsep.ops.native_status()
    if status.loaded:
        # the one in use first
        for isa in sorted(status.supported_isas, key=lambda isa: isa != status.isa):
            yield "cpu", isa
    yield "reference", None


def _selftest_name(backend: str, isa: str | None) -> str:
    return f"native kernels, {isa}" if isa else f"{backend} kernels"


def _check_selftest(backend: str, isa: str | None) -> Check:
    name = _selftest_name(backend, isa)
    try:
        outcome = _run_selftest(backend, isa)
    except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
        return Check(name, "failed", " ".join(str(error).split()))
    failures = outcome["failures"]
    if failures:
        return Check(name, "failed", f"{len(failures)} comparisons are wrong, first: {failures[0]}")
    if isa is not None and outcome["isa"] != isa:
        return Check(name, "failed", f"DWSEP_ISA={isa} was asked for, {outcome['isa']} was used")
    return Check(
        name,
        "ok",
        f"{outcome['problems']} problems equal float64 exactly on integers; on floats the largest error is "
        f"{outcome['worst']:.0%} of the rounding bound ({outcome['seconds']:.1f} s)",
    )


def _run_selftest(backend: str, isa: str | None) -> dict[str, Any]:
    import dwsep
    from dwsep.cli import _selftest

    if isa is None or isa == dwsep.ops.native_status().isa:
        return _selftest.run(backend)
    return _in_process(isa, backend)


def _in_process(isa: str, what: str) -> Any:
    """The self-test's answer in a process of its own: the instruction set is fixed when the library is loaded."""
    finished = subprocess.run(
        [sys.executable, "-m", "dwsep.cli._selftest", what],
        env={**os.environ, "DWSEP_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=_SELFTEST_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"exit code {finished.returncode}: {last}")
    return json.loads(finished.stdout)


def _may_take_tiles() -> bool:
    import dwsep

    status = dwsep.ops.native_status()
    return status.isa == "amx" and "amx_fp32" in status.supported_isas


def _check_tiles() -> Check:
    name = "float32 in tiles"
    try:
        vectors, tiles = (_in_process(isa, "time") for isa in ("amx", "amx_fp32"))
    except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
        return Check(name, "failed", " ".join(str(error).split()))
    detail = f"a separable layer of 256 channels takes {vectors:.2f} ms by vectors and {tiles:.2f} ms by tiles"
    if vectors < _TILES_GAIN * tiles:
        return Check(name, "ok", f"{detail}: vectors are used")
    return Check(name, "warning", f"{detail}: set DWSEP_ISA=amx_fp32 to have them (docs/design/amx.md)")


def _check_fresh_memory() -> Check:
    from dwsep.analysis.allocator import VARIABLES, allocator_name
    from dwsep.analysis.fresh_memory import measure_fresh_memory

    cost, name = measure_fresh_memory(), allocator_name()
    detail = (
        f"with {name}, each MiB written to fresh blocks costs {1000 * cost.fresh:.2f} ms and {cost.faults:.0f} page "
        f"faults, against {1000 * cost.kept:.2f} ms in blocks that are kept"
    )
    # Without faults, a difference is noise.
    if cost.faults < 1 or cost.overhead <= _FRESH_MEMORY_OVERHEAD:
        return Check("fresh memory", "ok", detail)
    advice = "preload an allocator that keeps memory, such as LD_PRELOAD=libtcmalloc_minimal.so.4"
    if name == "glibc":
        advice = f"dwsep train and demo have it keep memory; for other programs set {VARIABLES}, or {advice}"
    return Check("fresh memory", "warning", f"{detail}: {advice}")


def _check_extras() -> list[Check]:
    checks = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            detail = f"not installed: {', '.join(missing)}; get it with: pip install 'dwsep[{extra}]'"
            checks.append(Check(f"extra {extra}", "warning", detail))
        else:
            checks.append(Check(f"extra {extra}", "ok", ", ".join(modules)))
    return checks


def _check_data() -> Check:
    try:
        from dwsep.training.data import load_fashion_mnist_subset

        sizes = [len(load_fashion_mnist_subset(split)) for split in ("train", "test")]
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        return Check("embedded images", "failed", " ".join(str(error).split()))
    return Check("embedded images", "ok", f"{sizes[0]:,} to train on, {sizes[1]:,} to test on")
