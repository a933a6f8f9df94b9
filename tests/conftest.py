"""Uninitialised memory is NaN in every test, so that a kernel which forgets to write an element is found out."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Threads that spin while they wait would keep the other tests, which run beside, from the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Triton's kernels are tested everywhere: on a GPU where there is one, else in Triton's interpreter, which has to be
# asked for before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A timing never decides a test: the first draw alone takes seconds on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# The same for the memory which the native library keeps by itself.
os.environ.setdefault("DWSEP_KEEP_MEMORY", "spoil")

# Commands run inside the test process: they shall not set up its allocator for the tests after them.
os.environ["DWSEP_KEEP_ALLOCATOR"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="also run the long sweeps, which make test-all does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--sweep"):
        return
    skip = pytest.mark.skip(reason="a long sweep: run by make test-all")
    for item in items:
        if "sweep" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled()
    # torch fills torch.empty, and at::empty inside the native library, with NaN in this mode.
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)
