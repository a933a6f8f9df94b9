import json
import os

import torch

import dwsep
from dwsep.analysis import allocator, machine


def test_describe_machine_can_be_written_as_json_and_is_of_this_process():
    described = machine.describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert described["torch_threads"] == torch.get_num_threads()
    assert described["logical_cores"] == os.cpu_count()
    assert 1 <= described["usable_cores"] <= described["logical_cores"]
    assert described["cpu"]


def test_describe_machine_reads_the_files_of_linux(monkeypatch):
    files = {"/proc/cpuinfo": "processor\t: 0\nmodel name\t: Example CPU\nflags\t\t: fpu avx2 fma avx512f lm\n"}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(allocator, "_memory_map", lambda: "7f00-7f01 r-xp 00000000 00:00 0 /usr/lib/libjemalloc.so.2\n")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    described = machine.describe_machine()
    assert described["cpu"] == "Example CPU"
    assert described["flags"] == ["avx2", "fma", "avx512f"]
    assert described["allocator"] == "jemalloc"
    assert described["malloc_variables"]["MALLOC_ARENA_MAX"] == "2"


def test_describe_machine_says_so_where_nothing_can_be_found_out(monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: "")
    described = machine.describe_machine()
    assert described["cpu"]
    assert described["flags"] == []
    assert described["caches"] == {}


def test_describe_versions_lists_what_is_installed(monkeypatch):
    monkeypatch.setattr(machine, "_VERSIONED", ("torch", "no-such-package"))
    versions = machine.describe_versions()
    assert list(versions) == ["dwsep", "python", "torch"]
    assert versions["dwsep"] == dwsep.__version__
