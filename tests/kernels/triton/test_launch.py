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
    """A kernel of which the compiler makes ``first``, and ``limited`` for so many registers."""

    arg_names = ("x", "n")

    def __init__(self, first: Compiled, limited: dict[int, Compiled]) -> None:
        self.first, self.limited, self.warmups = first, limited, []

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, num_stages):
            self.first[grid](*arguments)
            return self.first

        return launch

    def warmup(self, *arguments, grid, num_warps, num_stages, maxnreg):
        self.warmups.append((arguments[1:], grid, num_warps, num_stages))
        return self.limited[maxnreg]


@pytest.mark.parametrize(
    "spills, of_limited, warmups, later",
    [
        (0, {}, 0, None),
        (2, {96: 0}, 1, 96),
        (2, {96: 2, 255: 0}, 2, 255),
        (2, {96: 1, 255: 0}, 2, 255),
        (2, {96: 3, 255: 3}, 2, None),
    ],
)
def test_a_kernel_that_spills_is_compiled_for_the_registers_it_has_then_for_all(spills, of_limited, warmups, later):
    first = Compiled(96, spills)
    limited = {registers: Compiled(registers, left) for registers, left in of_limited.items()}
    kernel = Kernel(first, limited)
    call = Call(kernel, (3,), 8, {"n": 7}, stages=2)
    for _ in range(3):
        call(torch.zeros(4))
    assert kernel.warmups == [((7,), (3, 1, 1), 8, 2)] * warmups
    assert all(compiled.loaded for compiled in limited.values())
    launched = {None: first.launched, **{registers: compiled.launched for registers, compiled in limited.items()}}
    assert launched == {None: 1, **dict.fromkeys(limited, 0), later: 2 if later else 3}
