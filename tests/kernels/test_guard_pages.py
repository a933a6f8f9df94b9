"""Operators on memory between inaccessible pages: one element too far is a segmentation fault.

Every run is a process of its own, so that the fault is a failed test. What lies between such pages:

- x, weights, biases, packed weights and gradients, to the byte and read-only, by :func:`guarded`;
- outputs, copies of x in another layout and scratch memory, by the allocator in tests/native/guard.c, which is
  preloaded where there is a C compiler: reads to the 64 bytes of an allocation's alignment, writes to the byte.

Scratch memory is kept and only grows, so that a small problem may find it larger than it needs: ``make sanitize``
covers that to the byte.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dwsep
from dwsep.ops.inference_program import Kind
from dwsep.ops.training_program import Kind as ProgramKind
from tests import forks, problems
from tests.ops.test_training_program import _row
from tests.programs import draw_step

NATIVE = dwsep.ops.native_status()
pytestmark = [
    pytest.mark.skipif(not NATIVE.loaded, reason=f"native library: {NATIVE.reason}"),
    pytest.mark.skipif(sys.platform != "linux", reason="mmap's flags are those of Linux"),
]
GUARD = Path(__file__).parents[1] / "native" / "guard.c"
ops = torch.ops.dwsep

# (spatial, kernel, stride, dilation, padding): odd sizes, borders on one side, wider than the image, or cut off;
# dilations as large as the image; rows longer than a panel.
GEOMETRIES = (
    ((11,), (3,), (1,), (1,), (1, 1)),
    ((13,), (4,), (3,), (2,), (6, 0)),
    ((7,), (3,), (1,), (9,), (9, 9)),
    ((7, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((9, 5), (5, 3), (2, 1), (1, 2), (2, 1, 0, 3)),
    ((6, 7), (3, 3), (1, 1), (5, 6), (5, 5, 6, 6)),
    ((8, 9), (3, 2), (1, 2), (1, 1), (-1, -2, 1, -1)),
    ((3, 3), (1, 1), (2, 2), (1, 1), (0, 0, 4, 5)),
    ((3, 301), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((3, 5, 7), (2, 3, 3), (1, 1, 1), (1, 1, 1), (1, 0, 1, 1, 1, 1)),
    ((5, 4, 6), (3, 3, 3), (2, 1, 2), (1, 2, 1), (1, 1, 2, 2, 0, 1)),
    ((261,), (2,), (1,), (1,), (1, 0)),
    ((300,), (4,), (1,), (2,), (9, -3)),
    ((4, 21), (3, 5), (1, 1), (1, 1), (1, 1, 2, 2)),
    ((6, 5), (2, 6), (1, 2), (1, 1), (1, 0, 3, 4)),
    ((5, 23), (2, 3), (1, 1), (2, 4), (1, 1, 4, 4)),
)
CHANNELS = ((5, 3, 19), (16, 1, 16), (16, 2, 5), (19, 1, 35), (35, 1, 5))  # in, multiplier, out
_kept = []  # buffers of the tensors below


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def guarded(source: Tensor | None, at_end: bool) -> Tensor | None:
    """A read-only copy, strides included, which ends right before an inaccessible page, or begins right behind one."""
    if source is None:
        return None
    libc, page = _libc(), mmap.PAGESIZE
    size = source.numel() * source.element_size()
    inside = (size + page - 1) // page * page
    region = libc.mmap(None, inside + 2 * page, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert region not in (None, ctypes.c_void_p(-1).value)
    first = region + page
    assert libc.mprotect(first, inside, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    buffer = (ctypes.c_char * size).from_address(first + (inside - size if at_end else 0))
    _kept.append(buffer)
    flat = torch.frombuffer(buffer, dtype=source.dtype)
    flat.copy_(source.as_strided((source.numel(),), (1,)))
    assert libc.mprotect(first, inside, mmap.PROT_READ) == 0
    return flat.as_strided(source.shape, source.stride())


def _problems() -> Iterator[tuple[problems.Problem, bool, torch.dtype]]:
    """Problems with their layout (whether channels last) and type."""
    for channels, multiplier, out_channels in CHANNELS:
        for index, geometry in enumerate(GEOMETRIES):
            problem = problems.Problem("", 1 + index % 2, channels, multiplier, out_channels, *geometry)
            yield problem, True, torch.float32
            yield problem, False, torch.bfloat16 if index % 2 else torch.float32
            if index % 2 == 0 or index > 12:
                yield problem, True, torch.bfloat16


def _check(results: Tensor | tuple[Tensor, ...]) -> None:
    for result in results if isinstance(results, tuple) else (results,):
        assert result.numel() > 0
        assert result.isfinite().all()


def _check_separable(tensors: tuple, grad: Tensor, geometry: tuple, residual: str) -> None:
    arguments = (*geometry, "relu", "silu", residual)
    _check(ops.separable_conv(*tensors, *arguments))
    _check(ops.separable_conv_backward(grad, *tensors, *arguments, [True] * 5))


def check_operators(at_end: bool) -> None:
    """Every operator on every problem, in both layouts and types; the caller's process dies at the first bad access."""
    generator = torch.Generator().manual_seed(5)
    for problem, channels_last, dtype in _problems():
        drawn = problem.tensors(problems.normal(generator), channels_last)
        tensors = tuple(guarded(tensor.to(dtype), at_end) for tensor in drawn)
        x, depthwise, pointwise, bias, pointwise_bias = tensors
        out = ops.depthwise_conv(x, depthwise, bias, *problem.geometry, "relu")
        _check(out)
        backward = (guarded(out, at_end), x, depthwise, bias, *problem.geometry, "relu", [True] * 3)
        _check(ops.depthwise_conv_backward(*backward))
        out = ops.separable_conv(*tensors, *problem.geometry, "relu", "silu", "none")
        _check_separable(tensors, guarded(out, at_end), problem.geometry, "none")
        weights = depthwise, pointwise, bias, pointwise_bias, problem.multiplier
        packed = guarded(ops.pack_separable_weights(*weights), at_end)
        sizes = [problem.channels * problem.multiplier, problem.out_channels, list(problem.kernel)]
        _check(ops.separable_conv_packed(x, packed, *sizes, *problem.geometry, "none", "gelu", "none"))
        if dtype is torch.float32:
            packed = guarded(ops.pack_separable_weights(*weights, True), at_end)
            _check(ops.separable_conv_packed(x, packed, *sizes, *problem.geometry, "none", "gelu", "none", True))
    _check_programs(generator, at_end)
    _check_resizes(problems.normal(generator), at_end)
    _check_rounded_products(problems.normal(generator), at_end)
    for channels in (5, 16, 19, 35):
        problem = problems.Problem("", 2, channels, 1, channels, *GEOMETRIES[3])
        for residual in ("input", "depthwise"):
            tensors = tuple(guarded(t, at_end) for t in problem.tensors(problems.normal(generator), True))
            _check_separable(tensors, tensors[0], problem.geometry, residual)
    for index, geometry in enumerate(GEOMETRIES):
        for channels, _, out_channels in CHANNELS:
            problem = problems.Problem("", 1 + index % 2, channels, 1, out_channels, *geometry)
            _check_stages(problem, problems.normal(generator), at_end)


def _check_resizes(draw: Callable[..., Tensor], at_end: bool) -> None:
    for channels, size, target in ((3, [5, 7], [11, 4]), (19, [1, 6], [3, 6]), (64, [4, 4], [9, 9])):
        x, grad = (guarded(problems.last(draw((2, channels, *sizes))), at_end) for sizes in (size, target))
        _check(ops.resize_bilinear(x, target, True, []))
        _check(ops.resize_bilinear_backward(grad, size, True, []))


def _check_rounded_products(draw: Callable[..., Tensor], at_end: bool) -> None:
    """A program of one pointwise convolution whose products may take bfloat16, both ways."""
    for channels, outputs, size in ((16, 16, 3), (35, 50, 7), (100, 33, 13)):
        tensors = (problems.last(draw((2, channels, size, 9))), draw((outputs, channels, 1, 1)), draw((outputs,)))
        x, *parameters = (guarded(tensor, at_end) for tensor in tensors)
        table = _row(ProgramKind.CONV, 0, 1, weight=0, bias=1), [0, 0], []
        made = ops.training_program([x], parameters, [], *table, True)
        _check(tuple(made))
        made, grad = [guarded(y, at_end) for y in made], guarded(problems.last(draw((2, outputs, size, 9))), at_end)
        _check(tuple(ops.training_program_backward([grad], [x], parameters, made, *table, [1], [True] * 3, True)))


def _check_programs(generator: torch.Generator, at_end: bool) -> None:
    rng = random.Random(7)
    for index in range(8 * len(Kind)):
        draw = problems.normal(generator)
        step = draw_step(Kind(index % len(Kind)), rng, lambda *shape, draw=draw: draw(shape), ("relu6", "silu"))
        step.bfloat16 = rng.random() < 0.5
        for name in ("weight", "bias"):
            setattr(step, name, guarded(getattr(step, name), at_end))
        arguments = step.arguments()
        for name in ("weights", "values", "steps"):
            if arguments[name].numel() > 0:
                arguments[name] = guarded(arguments[name], at_end)
        arguments["inputs"] = [guarded(x, at_end) for x in arguments["inputs"]]
        _check(tuple(ops.inference_program(**arguments)))


def _check_stages(problem: problems.Problem, draw, at_end: bool) -> None:
    """The stages of training and the packed 1x1 convolution, which are channels last and float32 only."""

    def take(*shape: int) -> Tensor | None:
        drawn = draw(shape)
        return guarded(drawn.movedim(1, -1).contiguous().movedim(-1, 1) if drawn.dim() > 2 else drawn, at_end)

    channels = problem.channels
    x, other = (take(problem.batch, channels, *problem.spatial) for _ in "xo")
    affine = (take(channels), take(channels), "silu")
    pointwise = take(problem.out_channels, channels, *(1,) * len(problem.spatial))
    for name, weight, rest in (
        ("pointwise_stage", pointwise, ()),
        ("depthwise_stage", take(channels, 1, *problem.kernel), problem.geometry),
    ):
        outputs = weight.shape[0]
        y, sums = getattr(ops, name)(x, *affine, weight, take(outputs), *rest)
        _check((y, sums))
        saved = (take(*y.shape), guarded(y, at_end), take(2, outputs), x, *affine, weight, True)
        _check(getattr(ops, f"{name}_backward")(*saved, *rest, [True, True]))
        _check(getattr(ops, name)(x, None, None, "none", weight, None, *rest))
    _check(ops.stage_output(x, *affine, other))
    _check(ops.stage_output_backward(other, x, *affine))
    _check(ops.stage_sums(x))
    _check(ops.stage_corrected(other, x, take(2, channels)))
    gate = take(problem.batch, channels)
    _check((ops.stage_pool(x, *affine), ops.stage_gate(x, *affine, gate), ops.stage_gate_gradient(other, x, *affine)))
    _check(ops.stage_squeeze_backward(other, gate, take(problem.batch, channels), x, *affine))
    residual = take(problem.batch, problem.out_channels, *problem.spatial)
    for bfloat16 in (False, True):
        packed = guarded(ops.pack_pointwise_weights(pointwise, take(problem.out_channels), bfloat16), at_end)
        _check(ops.pointwise_conv_packed(x, packed, problem.out_channels, "gelu", residual, bfloat16))


def _run(script: str, start: dict[str, str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    # Kept memory would lie in large pieces, without a border around each block.
    environment = {"DWSEP_KEEP_MEMORY": "0", **environment}
    return forks.run(f"from tests.kernels.test_guard_pages import *\n{script}", environment, start)


@pytest.fixture(scope="module")
def allocator(tmp_path_factory):
    """tests/native/guard.c as a library to preload."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    if "LD_PRELOAD" in os.environ:
        pytest.skip("another library is preloaded: its allocator would be in the way")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", GUARD, "-o", library], check=True)
    return str(library)


@pytest.mark.parametrize("isa", NATIVE.supported_isas)
def test_operators_stay_inside_their_inputs(isa):
    script = "check_operators(True)\ncheck_operators(False)\nprint(dwsep.ops.native_status().isa)"
    finished = _run(script, DWSEP_ISA=isa)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.strip() == isa


def _preloaded(allocator: str, edge: str) -> dict[str, str]:
    # The numbers of threads differ, because the way in which work is cut depends on them.
    return {"LD_PRELOAD": allocator, "DWSEP_GUARD": edge, "OMP_NUM_THREADS": {"end": "2", "start": "1"}[edge]}


@pytest.mark.parametrize("edge", ["end", "start"])
@pytest.mark.parametrize("isa", NATIVE.supported_isas)
def test_operators_stay_inside_outputs_and_scratch(allocator, isa, edge):
    script = f"check_operators({edge == 'end'})\nprint(dwsep.ops.native_status().isa)"
    finished = _run(script, _preloaded(allocator, edge), DWSEP_ISA=isa)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.strip() == isa


@pytest.mark.parametrize(
    ("at_end", "access"),
    [
        (True, "ctypes.string_at(x.data_ptr() + 4 * x.numel(), 1)"),
        (False, "ctypes.string_at(x.data_ptr() - 1, 1)"),
        (True, "x.zero_()"),
    ],
)
def test_a_bad_access_to_an_input_is_a_fault(at_end, access):
    script = f"x = guarded(torch.ones(35), {at_end})\nassert x.sum() == 35\nprint('alive')\n{access}\nprint('still')"
    finished = _run(script)
    assert finished.stdout == "alive\n"
    assert finished.returncode != 0
    assert "Segmentation fault" in finished.stderr or "SEGV" in finished.stderr


@pytest.mark.parametrize(
    ("edge", "access", "words"),
    [
        ("end", "ctypes.memset(x.data_ptr() + 4 * x.numel(), 0, 1)", "written behind the end"),
        ("end", "ctypes.memset(x.data_ptr() - 1, 0, 1)", "written before the beginning"),
        ("end", "ctypes.string_at(x.data_ptr() + 4 * x.numel() + 63, 1)", "Segmentation fault"),
        ("start", "ctypes.string_at(x.data_ptr() - 1, 1)", "Segmentation fault"),
    ],
)
def test_a_bad_access_to_an_output_is_a_fault(allocator, edge, access, words):
    script = f"x = torch.empty(35)\nprint('alive')\n{access}\ndel x\nprint('still')"
    finished = _run(script, _preloaded(allocator, edge))
    assert finished.stdout == "alive\n"
    assert finished.returncode < 0
    assert words in finished.stderr
