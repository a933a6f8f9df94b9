import ctypes
import os
import platform
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dwsep.analysis import allocator
from dwsep.cli.main import app

# What the tests start from: neither the variable which they are run with, nor a tuned allocator.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("DWSEP_KEEP_ALLOCATOR", "GLIBC_TUNABLES") and not name.startswith("MALLOC_")
}
COUNT_FAULTS = """
from dwsep.analysis import allocator, machine
from dwsep.analysis.fresh_memory import measure_fresh_memory

print(allocator.keep_freed_memory(), measure_fresh_memory(rounds=3).faults, sep="|")
print(allocator.allocator_settings() == machine.describe_machine()["allocator_settings"])
"""
on_glibc = pytest.mark.skipif(allocator.allocator_name() != "glibc", reason=f"runs on {allocator.allocator_name()}")


@pytest.fixture
def untouched(monkeypatch):
    """A process whose allocator is glibc's with its defaults; mallopt is recorded instead of called."""
    for name in set(os.environ) - set(CLEAN):
        monkeypatch.delenv(name)
    calls = []

    class Library:
        def __init__(self, name):
            assert name is None

        def mallopt(self, parameter, value):
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(allocator, "_applied", {})
    monkeypatch.setattr(allocator, "_memory_map", lambda: "7f00-7f01 r-xp 00000000 00:00 0 /usr/lib/libc.so.6\n")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return calls


def count_faults(**environment):
    finished = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env={**CLEAN, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    outcome, truthful = finished.stdout.splitlines()
    reason, faults = outcome.split("|")
    assert truthful == "True"
    return reason, float(faults)


@on_glibc
def test_keep_freed_memory_ends_the_page_faults():
    reason, faults = count_faults()
    assert reason == "None"
    assert faults < 1  # of 256 per MiB where every page is fresh


@on_glibc
def test_variables_do_what_the_call_does():
    reason, faults = count_faults(**dict(entry.split("=") for entry in allocator.VARIABLES.split()))
    assert reason == "it is tuned by MALLOC_MMAP_MAX_, MALLOC_TOP_PAD_, MALLOC_TRIM_THRESHOLD_"
    assert faults < 1


def test_keep_freed_memory_says_what_it_has_set(untouched):
    assert allocator.keep_freed_memory() is None
    assert untouched == [(-4, 0), (-1, -1), (-2, 1 << 26)]
    assert allocator.allocator_settings() == {"M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": -1, "M_TOP_PAD": 1 << 26}


@pytest.mark.parametrize(
    ("name", "value", "left_alone"),
    [
        ("DWSEP_KEEP_ALLOCATOR", "1", True),
        ("DWSEP_KEEP_ALLOCATOR", "0", False),
        ("MALLOC_ARENA_MAX", "2", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", True),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0", False),
    ],
)
def test_keep_freed_memory_respects_what_somebody_has_set(untouched, monkeypatch, name, value, left_alone):
    monkeypatch.setenv(name, value)
    reason = allocator.keep_freed_memory()
    assert (name in (reason or "")) == left_alone
    assert bool(untouched) == (not left_alone)


@pytest.mark.parametrize("name", ["tcmalloc_minimal.so.4", "jemalloc.so.2", "mimalloc-secure.so.2", "asan.so.8"])
def test_keep_freed_memory_leaves_another_allocator_alone(untouched, monkeypatch, name):
    monkeypatch.setattr(allocator, "_memory_map", lambda: f"7f00-7f01 r-xp 00000000 00:00 0 /usr/lib/lib{name}\n")
    reason = allocator.keep_freed_memory()
    assert reason is not None
    assert name.split(".")[0].split("_")[0].split("-")[0] in reason
    assert untouched == []


@pytest.mark.parametrize("libc", ["musl", ""])
def test_keep_freed_memory_does_nothing_without_glibc(untouched, monkeypatch, libc):
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    assert allocator.keep_freed_memory() == f"the allocator is {libc or 'system'}, not glibc's"
    assert untouched == []


def test_keep_freed_memory_claims_nothing_that_was_refused(untouched, monkeypatch):
    monkeypatch.setattr(ctypes.CDLL, "mallopt", lambda self, parameter, value: 0)
    assert allocator.keep_freed_memory() == "mallopt refused M_MMAP_MAX=0"
    assert allocator.allocator_settings() == {}


@pytest.mark.parametrize("command", [["demo", "--epochs", "0"], ["train", "--data", "folder", "--data-dir", "missing"]])
def test_commands_that_train_set_the_allocator_up(monkeypatch, tmp_path, command):
    called = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, command).exit_code == 2
    assert called == [True]
