"""Depthwise layers on a GPU: cases, peers, and the times of their kernels with the caches overwritten before each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep import dispatch, functional
from dwsep.bench.registry import Case
from dwsep.errors import unknown_name
from dwsep.geometry import ConvGeometry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = "dwsep"
# The largest relative error in norm that a correct result may have: a few roundings of its type.
TOLERANCE = {"float32": 1e-5, "bfloat16": 8e-3, "float16": 1e-3}
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}


def _depthwise(batch: int, channels: int, spatial: tuple[int, ...], kernel: tuple[int, ...], **options: int) -> Case:
    suffix = "".join(f"{key[0]}{value}" for key, value in options.items())
    name = f"{channels}@{'x'.join(map(str, spatial))}-{'x'.join(map(str, kernel))}{suffix}"
    return Case("depthwise", name, batch, channels, channels, spatial, kernel, **options)


# MobileNet's and EfficientNet's layers, ConvNeXt's, dilated ones, and the short and long convolutions of sequences.
CASES = (
    _depthwise(128, 128, (56, 56), (3, 3)),
    _depthwise(128, 96, (112, 112), (3, 3), stride=2),
    _depthwise(128, 512, (14, 14), (3, 3)),
    _depthwise(128, 240, (28, 28), (5, 5)),
    _depthwise(128, 240, (28, 28), (5, 5), stride=2),
    _depthwise(64, 96, (56, 56), (7, 7)),
    _depthwise(128, 384, (14, 14), (7, 7)),
    _depthwise(32, 128, (28, 28), (31, 31)),
    _depthwise(128, 256, (28, 28), (3, 3), dilation=2),
    _depthwise(64, 256, (33, 33), (3, 3), dilation=6),
    _depthwise(1, 12288, (16384,), (4,)),
    _depthwise(8, 768, (4096,), (31,)),
)


@dataclass(frozen=True)
class Problem:
    """The tensors of a case on the GPU, contiguous: x, weight and the gradient of the output."""

    case: Case
    x: Tensor
    weight: Tensor
    grad: Tensor

    @property
    def causal(self) -> bool:
        """Whether the case is the causal convolution of a sequence, as short ones with an even kernel are."""
        return self.case.ndim == 1 and self.case.taps % 2 == 0

    @property
    def options(self) -> dict[str, Any]:
        """Geometry as ``torch.nn.functional`` takes it, padding symmetric."""
        extents = [self.case.dilation * (kernel - 1) for kernel in self.case.kernel]
        padding = extents if self.causal else [extent // 2 for extent in extents]
        return {"stride": [self.case.stride] * self.case.ndim, "padding": padding, "dilation": self.case.dilation}

    @property
    def bytes(self) -> int:
        """The fewest bytes of a training step: x, output and their gradients, each where it must be read or written."""
        return 3 * (self.x.numel() + self.grad.numel()) * self.x.element_size()


def make_problem(case: Case, dtype: str, device: str = "cuda") -> Problem:
    """Draws a case's tensors."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(DTYPES[dtype])

    weight = draw(case.channels, 1, *case.kernel) / case.taps**0.5
    return Problem(
        case, draw(case.batch, case.channels, *case.spatial), weight, draw(case.batch, case.channels, *case.out_spatial)
    )


def _last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def step_of(convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], Any]:
    """A training step of a convolution: the output and both gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = convolve(x, weight)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), grad))

    return step


def _stock(problem: Problem, last: bool = False) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...]]:
    """PyTorch's convolution as its users write it, and its x, weight and output gradient."""
    options, tensors = problem.options, (problem.x, problem.weight, problem.grad)
    conv, length = _CONV[problem.case.ndim], problem.case.spatial[-1]
    if last and problem.case.ndim == 1:  # PyTorch has a channels-last layout for images alone
        options = {"stride": [1, *options["stride"]], "padding": [0, *options["padding"]], "dilation": 1}
        tensors, conv = tuple(tensor.unsqueeze(2) for tensor in tensors), F.conv2d
    if last:
        tensors = tuple(tensor.to(memory_format=torch.channels_last) for tensor in tensors)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        y = conv(x, weight, None, groups=x.shape[1], **options)
        return y[..., :length] if problem.causal else y

    return convolve, tensors


def _eager(problem: Problem, last: bool, cudnn: bool) -> Callable[[], Any]:
    convolve, tensors = _stock(problem, last)
    step = step_of(convolve, *tensors)

    def call() -> Any:
        with nullcontext() if cudnn else torch.backends.cudnn.flags(enabled=False):
            return step()

    return call


def _compiled(problem: Problem) -> Callable[[], Any]:
    import torch._dynamo

    torch._dynamo.reset()
    convolve, tensors = _stock(problem, problem.case.ndim == 2)
    return step_of(torch.compile(convolve, dynamic=False, mode="max-autotune-no-cudagraphs"), *tensors)


def _ours(problem: Problem, last: bool) -> Callable[[], Any]:
    case = problem.case
    # As our modules call it: their geometry is worked out once.
    padding = "causal" if problem.causal else [(low, low) for low in problem.options["padding"]]
    geometry = ConvGeometry.make(case.ndim, case.kernel, case.stride, padding, case.dilation)
    x, grad = (_last(tensor) if last else tensor for tensor in (problem.x, problem.grad))

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return functional.depthwise_conv(x, weight, None, geometry, "none", "triton")

    return step_of(convolve, x, problem.weight, grad)


PEERS: dict[str, Callable[[Problem], Callable[[], Any]]] = {
    "dwsep": lambda problem: _ours(problem, False),
    "dwsep NHWC": lambda problem: _ours(problem, True),
    "NCHW": lambda problem: _eager(problem, False, True),
    "NHWC": lambda problem: _eager(problem, True, True),
    "NCHW, no cuDNN": lambda problem: _eager(problem, False, False),
    "NHWC, no cuDNN": lambda problem: _eager(problem, True, False),
    "compile": _compiled,
}


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products in float32, for all peers alike."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def truth(problem: Problem) -> list[Tensor]:
    """Output and gradients in float64, by PyTorch's own depthwise kernels."""
    convolve, tensors = _stock(problem)
    with torch.backends.cudnn.flags(enabled=False):
        return list(step_of(convolve, *(tensor.double() for tensor in tensors))())


def error_of(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error in norm of output and gradients; infinite for what is not finite."""
    errors = []
    for got, want in zip(results, expected, strict=True):
        difference = got.double().reshape(want.shape) - want
        errors.append((difference.norm() / want.norm()).item())
    worst = max(errors)
    return worst if worst == worst else float("inf")


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the GPU, read and written counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = measure({"copy": lambda: target.copy_(source)}, rounds=10)["copy"]
    return 2 * source.numel() / seconds


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call's kernels as a CUDA graph, whose replay issues them without Python in between."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay(owned: Any = (call, results)) -> None:  # the graph reads and writes tensors that these own
        graph.replay()

    return replay


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int = 20) -> dict[str, float]:
    """Median seconds of each call on the GPU, by events: the calls take turns, the caches are overwritten before."""
    flush = torch.empty(2**26, dtype=torch.int32, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        events = {}
        for name, call in calls.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events[name] = start, end
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            times[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def host_seconds(call: Callable[[], Any], calls: int = 30) -> float:
    """Seconds in which the CPU issues a call, whatever the GPU is doing: the shortest of three tries."""
    tries = []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        tries.append((time.perf_counter() - begin) / calls)
    torch.cuda.synchronize()
    return min(tries)


def compare(case: Case, dtype: str, peers: Sequence[str] = tuple(PEERS), rounds: int = 20) -> dict[str, Any]:
    """Times a training step of one case with each peer, those whose results are right.

    Returns:
        "case", "batch", "dtype", "bytes" (of the floor) and "peers": name -> "status" ("ok", "wrong" or "failed"), with
        "median" in seconds of its kernels and "error", or a "reason".
    """
    for name in peers:
        if name not in PEERS:
            raise unknown_name("peers", name, tuple(PEERS))
    problem = make_problem(case, dtype)
    expected = truth(problem)
    ready: dict[str, Callable[[], Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    with _exact_products():
        for name in peers:
            try:
                call = PEERS[name](problem)
                error = error_of(call(), expected)
                ready[name] = captured(call)
            except Exception as fault:  # whatever a peer raises is its result; the others go on
                first = (str(fault).strip().splitlines() or [""])[0]
                results[name] = {"status": "failed", "reason": f"{type(fault).__name__}: {first}"}
                continue
            results[name] = {"status": "ok", "error": error}
            if error > TOLERANCE[dtype]:
                del ready[name]
                results[name] = {"status": "wrong", "reason": f"relative error {error:.1e}"}
        del expected
        for name, median in measure(ready, rounds).items():
            results[name]["median"] = median
    return {"case": case.name, "batch": case.batch, "dtype": dtype, "bytes": problem.bytes, "peers": results}


def ours(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What came of our own variants."""
    return [figures for name, figures in record["peers"].items() if name.startswith(OURS)]


def best(record: Mapping[str, Any], of_ours: bool) -> tuple[str, float] | None:
    """The fastest of our variants, or of the peers, and its seconds; None where none ran."""
    times = [
        (figures["median"], name)
        for name, figures in record["peers"].items()
        if name.startswith(OURS) == of_ours and "median" in figures
    ]
    return min(times)[::-1] if times else None


def table(records: Sequence[Mapping[str, Any]], bandwidth: float) -> str:
    """A Markdown table: microseconds of a training step, the floor by bytes, how often faster than the best peer."""
    names = list(dict.fromkeys(name for record in records for name in record["peers"]))
    head = ["layer", "batch", "dtype", "floor", *names, "times faster than the best peer"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for record in records:
        cells = [record["case"], str(record["batch"]), record["dtype"], f"{record['bytes'] / bandwidth * 1e6:.0f}"]
        for name in names:
            figures = record["peers"].get(name, {"status": "-"})
            cells.append(f"{figures['median'] * 1e6:.0f}" if "median" in figures else figures["status"])
        fastest, peer = best(record, True), best(record, False)
        cells.append(f"{peer[1] / fastest[1]:.2f} ({peer[0]})" if fastest and peer else "-")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def require_gpu() -> None:
    """Raises where dwsep's kernels do not run on a GPU here, with the reasons."""
    status = dispatch.backends()["triton"]
    if not status.available:
        raise NotImplementedError("--device cuda: " + "; ".join(status.reasons))
