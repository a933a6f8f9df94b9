"""The allocator's settings of a process that measures."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dwsep.bench.allocator import environment

SCRIPT = """
import torch
from dwsep.bench.allocator import give_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident()
tensors = [torch.ones(2**19) for _ in range(128)]  # 2 MiB each
del tensors
kept = resident() - before
give_back()
print(kept, resident() - before)
"""


def test_settings_of_the_parent_are_left_out():
    current = {"MALLOC_TOP_PAD_": "1", "GLIBC_TUNABLES": "x", "HOME": "/"}
    assert environment("default", current) == {"HOME": "/"}
    raised = environment("raised", current)
    assert raised["HOME"] == "/"
    assert int(raised["MALLOC_TOP_PAD_"]) > 1
    assert "GLIBC_TUNABLES" not in raised


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment("raised", os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    kept, left = map(int, ran.stdout.split())
    assert kept > 200 * 2**20  # or there would be nothing to see
    assert left < kept / 4
