"""The commands set the number of threads of their process, which here is that of the tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads_are_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
