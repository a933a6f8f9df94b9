"""Tests and times the CUDA kernels on the GPU that is here, and writes docs/results/<gpu>.md; takes a few minutes.

Run from a clone: PYTHONPATH=src python scripts/gpu_check.py
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import triton

import dwsep
from dwsep import functional
from dwsep.accelerate import _gates, _stages, _training
from dwsep.bench import cuda
from dwsep.bench.registry import Case
from dwsep.geometry import ConvGeometry

ROOT = Path(__file__).parents[1]
NETWORKS = ("mobilenetv2_100", "efficientnet_b0", "convnext_tiny")
BATCH = 128


def run_tests(log: Path, seconds: float) -> str:
    """The last line of the kernels' tests."""
    parallel = ["-n", str(min(14, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    # Some plugins warn at parallel runs, and warnings are errors here.
    options = ["-q", "-p", "no:benchmark", "-W", "ignore::pytest.PytestWarning", *parallel]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "tests/kernels/triton",
        "tests/accelerate/test_cuda.py",
        "tests/test_dispatch.py",
    ]
    with log.open("w") as output:
        try:
            subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not finished after {seconds} s"
    return (log.read_text().strip().splitlines() or ["no output"])[-1].strip("= ")


Layer = tuple[tuple[int, ...], ConvGeometry, bool]  # input size, geometry, whether there is a bias


def compile_kernels(job: tuple[Case, str] | Layer) -> None:
    """Compiles what a case or a network's layer needs, into Triton's cache on disk."""
    if isinstance(job[0], Case):
        case, dtype = job
        problem = cuda.make_problem(replace(case, batch=1), dtype)
        for name in ("dwsep", "dwsep NHWC"):
            cuda.PEERS[name](problem)()
    else:
        size, geometry, has_bias = job
        options = {"device": "cuda", "dtype": torch.bfloat16}
        x = torch.randn(2, *size[1:], **options).to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(size[1], 1, *geometry.kernel_size, **options).requires_grad_()
        bias = torch.randn(size[1], **options).requires_grad_() if has_bias else None
        functional.depthwise_conv(x, weight, bias, geometry, "none", "triton").sum().backward()
    torch.cuda.synchronize()


def in_parallel(work: Callable, jobs: Iterable) -> None:
    """Does the jobs in processes of their own, as compiling takes one core each."""
    workers = min(14, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(work, jobs))


def depthwise_layers(network: torch.nn.Module) -> list[torch.nn.Conv2d]:
    """The layers whose kernels ours take the place of."""
    convolutions = [module for module in network.modules() if type(module) is torch.nn.Conv2d]
    return [layer for layer in convolutions if layer.groups == layer.in_channels > 1 and layer.padding != "same"]


def geometry_of(layer: torch.nn.Conv2d) -> ConvGeometry:
    """Geometry of a layer of PyTorch's."""
    return ConvGeometry.make(2, layer.kernel_size, layer.stride, list(layer.padding), layer.dilation)


def use_ours(layer: torch.nn.Conv2d) -> None:
    """Has one layer run on our kernels."""
    geometry = geometry_of(layer)
    layer.forward = lambda x: functional.depthwise_conv(x, layer.weight, layer.bias, geometry, "none", "triton")


def network_layers() -> list[Layer]:
    """What the networks' depthwise layers are, each once."""
    import timm

    found: dict[Layer, None] = {}

    def note(layer: torch.nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        found[tuple(inputs[0].shape), geometry_of(layer), layer.bias is not None] = None

    x = torch.randn(2, 3, 224, 224, device="cuda")
    for name in NETWORKS:
        network = timm.create_model(name).cuda()
        for layer in depthwise_layers(network):
            layer.register_forward_pre_hook(note)
        with torch.no_grad():
            network(x)
    return list(found)


def network_step(network: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A training step without the optimizer."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(x).float().logsumexp(1).sum().backward()

    return step


def networks() -> str:
    """A table of training steps with PyTorch's depthwise layers and with ours."""
    import timm

    lines = ["| network | eager, ms | eager with our depthwise layers, ms | times faster |", "|---|---|---|---|"]
    x = torch.randn(BATCH, 3, 224, 224, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    for name in NETWORKS:
        eager, ours = (
            timm.create_model(name).to("cuda", torch.bfloat16, memory_format=torch.channels_last).train()
            for _ in range(2)
        )
        for layer in depthwise_layers(ours):
            use_ours(layer)
        times = cuda.measure({"eager": network_step(eager, x), "ours": network_step(ours, x)}, rounds=10)
        figures = times["eager"] * 1e3, times["ours"] * 1e3, times["eager"] / times["ours"]
        lines.append(f"| {name} | {figures[0]:.1f} | {figures[1]:.1f} | {figures[2]:.2f} |")
    return "\n".join(lines)


# An operator of the stages and its arguments, tensors as sizes and types.
StageCall = tuple[str, tuple]


class Recorder:
    """In place of the stages' operators: runs them, and notes what they are called with at the batch that is timed."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.calls: dict[StageCall, None] = {}

    def __getattr__(self, name: str) -> Callable:
        operator = getattr(torch.ops.dwsep, name)
        names = [argument.name for argument in operator.default._schema.arguments]

        def call(*arguments: object) -> object:
            noted = (self._noted(*pair) for pair in zip(names, arguments, strict=True))
            self.calls[name, tuple(noted)] = None
            return operator(*arguments)

        return call

    def _noted(self, name: str, value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return tuple(value) if isinstance(value, list) else value
        image = value.dtype is torch.float32 and name != "weight" and value.dim() in (2, 4) and name != "correction"
        size = (self.batch, *value.shape[1:]) if image and value.shape[0] == 2 else tuple(value.shape)
        return torch.Size(size), torch.bfloat16 if image else value.dtype


def stage_calls() -> list[StageCall]:
    """What the networks' stages are called with in a training step under autocast, each once."""
    import timm

    recorder = Recorder(BATCH)
    x = torch.randn(2, 3, 224, 224)
    before = _training.ON_REFERENCES, _training.SEGMENTS, _stages.stage_ops, _gates.stage_ops
    _training.ON_REFERENCES, _training.SEGMENTS = True, False
    _stages.stage_ops = _gates.stage_ops = recorder
    try:
        for name in NETWORKS:
            network = timm.create_model(name).train()
            dwsep.accelerate_(network)
            network(x).sum().backward()
    finally:
        _training.ON_REFERENCES, _training.SEGMENTS, _stages.stage_ops, _gates.stage_ops = before
    return list(recorder.calls)


def compile_stage(call: StageCall) -> None:
    """Compiles what one call needs, into Triton's cache on disk."""
    name, noted = call

    def made(value: object) -> object:
        if isinstance(value, tuple) and value and isinstance(value[0], torch.Size):
            drawn = torch.rand(value[0], device="cuda").to(value[1])
            return drawn.to(memory_format=torch.channels_last) if drawn.dim() == 4 else drawn
        return list(value) if isinstance(value, tuple) else value

    getattr(torch.ops.dwsep, name)(*map(made, noted))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def autocast_step(network: torch.nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A training step under autocast to bfloat16, without the optimizer; returns the loss."""

    def step() -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = network(x)
        loss = out.float().logsumexp(1).sum()
        loss.backward()
        return loss.detach()

    return step


def gradient_distance(network: torch.nn.Module, other: torch.nn.Module) -> float:
    """How far the gradients of two networks are apart, all of them in one norm."""
    pairs = [(p.grad, q.grad) for p, q in zip(network.parameters(), other.parameters(), strict=True)]
    apart = sum((p.double() - q.double()).square().sum() for p, q in pairs if p is not None and q is not None)
    size = sum(q.double().square().sum() for _, q in pairs if q is not None)
    return float((apart / size).sqrt())


def staged_networks(compiles: bool) -> str:
    """A table of training steps under autocast, eager and on stages, issued from Python and as CUDA graphs."""
    import timm

    _training.ON_CUDA = True
    names = ["eager", *(["compile"] if compiles else []), "stages"]
    head = ["network", *(f"{name}, ms" for name in names), *(f"{name} as a graph, ms" for name in names), "distance"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    x = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    for name in NETWORKS:
        eager = timm.create_model(name).to("cuda", memory_format=torch.channels_last).train()
        staged = copy.deepcopy(eager)
        dwsep.accelerate_(staged)
        steps = {"eager": autocast_step(eager, x), "stages": autocast_step(staged, x)}
        if compiles:
            torch._dynamo.reset()
            compiled = copy.deepcopy(eager)
            steps["compile"] = autocast_step(torch.compile(compiled), x)
        for step in steps.values():
            step()
        distance = gradient_distance(staged, eager)
        times = cuda.measure(steps, rounds=10)
        graphs = cuda.measure({name: cuda.captured(step) for name, step in steps.items()}, rounds=10)
        figures = [f"{seconds[name] * 1e3:.1f}" for seconds in (times, graphs) for name in names]
        lines.append(" | ".join([name, *figures, f"{distance:.1e}"]))
        del eager, staged, steps
        gc.collect()
        torch.cuda.empty_cache()
    _training.ON_CUDA = False
    return "\n".join(f"| {line} |" for line in lines)


def host_times() -> str:
    """What issuing a training step costs on the CPU, where the GPU has next to nothing to do."""
    problem = cuda.make_problem(Case("depthwise", "tiny", 8, 64, 64, (14, 14), (3, 3)), "bfloat16")
    peers = ("dwsep", "dwsep NHWC", "NCHW", "NHWC")
    times = {name: cuda.host_seconds(cuda.PEERS[name](problem)) for name in peers}
    return ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in times.items())


PAGE = """# {gpu}: training steps of the depthwise convolution

Python {python}, torch {torch}, cuDNN {cudnn}, triton {triton}. Command: `{command}`.
Tests on this GPU: {tests}.

Microseconds of the kernels of one training step: forward, gradient of the input, gradient of the weight. Each step is
replayed as a CUDA graph, so that issuing it from Python is not timed, the caches overwritten before each; medians of
{rounds} rounds in which all take turns; each result compared with float64 first; float32 without TF32 for all. The
floor is the fewest bytes, six passes over tensors of the size of x or y, over the {bandwidth:.2f} TB/s of a large copy
here. "NHWC" is channels_last (a sequence becomes an image one pixel high), "no cuDNN" has it switched off.

{layers}

Issuing a step from Python takes, in microseconds on this machine's CPU, on a layer too small for the GPU to matter:
{host}.

## Networks

A training step, forward and backward, of timm's networks in bfloat16 and channels_last, batch {batch}, 224 x 224, not
as a graph: eager, and the same with its depthwise layers on our kernels.

{networks}

The same networks with float32 parameters under autocast to bfloat16: eager, and accelerated with chains on stages
(`DWSEP_CUDA_FUSED=1`), each issued from Python and replayed as a CUDA graph. "distance" is that of the two gradients,
relative, in one norm over all parameters.

{staged}
"""


def main() -> None:
    """Runs everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-networks", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile among the peers, which takes minutes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--test-seconds", type=float, default=240, help="after which the tests are given up")
    arguments = parser.parse_args()
    cuda.require_gpu()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:.0f} s] {text}", flush=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name()
    page = arguments.output / f"{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}.md"
    tests, networks_table, staged_table, records = "not run", "Not measured.", "Not measured.", []
    jobs = [(case, dtype) for dtype in ("bfloat16", "float32") for case in cuda.CASES]
    in_parallel(compile_kernels, [*jobs, *([] if arguments.no_networks else network_layers())])
    say("kernels of the depthwise layers compiled")
    if not arguments.no_networks:
        in_parallel(compile_stage, stage_calls())
        say("kernels of the stages compiled")
    bandwidth, host = cuda.copy_bandwidth(), host_times()
    say(f"host: {host}")

    def write() -> None:
        text = PAGE.format(
            gpu=gpu,
            python=platform.python_version(),
            torch=torch.__version__,
            cudnn=torch.backends.cudnn.version(),
            triton=triton.__version__,
            command=f"python scripts/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
            tests=tests,
            rounds=arguments.rounds,
            bandwidth=bandwidth / 1e12,
            layers=cuda.table(records, bandwidth),
            host=host,
            batch=BATCH,
            networks=networks_table,
            staged=staged_table,
        )
        page.write_text(text)

    peers = [name for name in cuda.PEERS if arguments.compile or name != "compile"]
    for case, dtype in jobs:
        records.append(cuda.compare(case, dtype, peers, rounds=arguments.rounds))
        say(f"{case.name} {dtype}: {cuda.best(records[-1], True)}, best peer {cuda.best(records[-1], False)}")
        write()
    if not arguments.no_networks:
        networks_table = networks()
        say("\n" + networks_table)
        write()
        staged_table = staged_networks(arguments.compile)
        say("\n" + staged_table)
        write()
    if not arguments.no_tests:
        gc.collect()
        torch.cuda.empty_cache()  # some tests need tens of gigabytes
        tests = run_tests(arguments.output / "tests.log", arguments.test_seconds)
        say(f"tests: {tests}")
        write()
    say(f"wrote {page}")


if __name__ == "__main__":
    main()
