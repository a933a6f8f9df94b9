"""Why the Triton kernels cannot run, in words."""

from __future__ import annotations

import pytest
import torch

from dwsep.kernels.triton import support


@pytest.fixture
def machine(monkeypatch):
    """A machine with one GPU, whose properties a test sets."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(support, "_capabilities", {})

    def set_machine(capability=(8, 0), triton="3.6.0"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capability)
        monkeypatch.setattr(support, "triton_version", lambda: triton)
        monkeypatch.setattr(support, "_PACKAGE_REASONS", support._package_reasons())

    return set_machine


def test_a_machine_that_can(machine):
    machine()
    assert support.machine_reasons() == ()
    assert support.problem_reasons(2, torch.bfloat16, "cuda") == ()


@pytest.mark.parametrize(
    "properties, reason",
    [
        ({"capability": (7, 0)}, "compute capability is 7.0, the kernels need 7.5"),
        ({"triton": "3.5.1"}, "triton is 3.5.1, the kernels need 3.6"),
        ({"triton": None}, "triton is not installed"),
    ],
)
def test_machines_that_cannot(machine, properties, reason):
    machine(**properties)
    assert any(reason in text for text in support.machine_reasons())


@pytest.mark.parametrize(
    "problem, reason",
    [
        ((3, torch.float32, "cuda"), "3 spatial axes"),
        ((2, torch.float64, "cuda"), "torch.float64"),
        ((2, torch.float32, "cpu"), "'cpu'"),
    ],
)
def test_problems_that_cannot(machine, problem, reason):
    machine()
    (found,) = support.problem_reasons(*problem)
    assert reason in found
