"""Which compiled kernel a launch's later calls run, with a kernel that says what its assembler did."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from dwsep.kernels.triton.launch import Call


class Compiled:
    """A compiled kernel of so many registers and spills."""

    def __init__(self, registers: int, spills: int) -> None:
        self.n_regs, self.n_spills, self.loaded, self.launched = registers, spills, False, 0

    def __getitem__(self, grid):
        self.loaded = True

        def launch(*arguments):
            self.launched += 1

        return launch


class Kernel:
    """A kernel whose compiler gives ``first``, and ``limited`` where it is told how many registers there are."""

    arg_names = ("x", "n")

    def __init__(self, first: Compiled, limited: Compiled) -> None:
        self.first, self.limited, self.limits = first, limited, []

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, num_stages):
            self.first[grid](*arguments)
            return self.first

        return launch

    def warmup(self, *arguments, grid, num_warps, num_stages, maxnreg):
        self.limits.append((arguments[1:], grid, num_warps, num_stages, maxnreg))
        return self.limited


@pytest.mark.parametrize(
    "spills, spills_when_limited, limits, later",
    [
        (0, 0, [], "first"),
        (2, 0, [((7,), (3, 1, 1), 8, 2, 96)], "limited"),
        (2, 2, [((7,), (3, 1, 1), 8, 2, 96)], "first"),
    ],
)
def test_a_kernel_that_spills_is_compiled_for_the_registers_it_has(spills, spills_when_limited, limits, later):
    first, limited = Compiled(96, spills), Compiled(96, spills_when_limited)
    kernel = Kernel(first, limited)
    call = Call(kernel, (3,), 8, {"n": 7}, stages=2)
    for _ in range(3):
        call(torch.zeros(4))
    assert kernel.limits == limits
    assert limited.loaded == bool(limits)
    assert (first.launched, limited.launched) == ((3, 0) if later == "first" else (1, 2))
