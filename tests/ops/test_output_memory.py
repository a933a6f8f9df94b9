"""Memory of freed results is kept, and nobody sees anything of it but the time."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading

import pytest
import torch

import dwsep
from dwsep.functional import depthwise_conv2d

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason="the native library, whose memory this is, is not loaded"
)
# As in sanitized builds, whose library keeps none.
kept = pytest.mark.skipif(os.environ.get("DWSEP_KEEP_MEMORY") == "0", reason="DWSEP_KEEP_MEMORY=0: no memory is kept")
LARGE = (2, 64, 56, 56)  # 1.6 MB of float32


def _run(x: torch.Tensor) -> torch.Tensor:
    return depthwise_conv2d(x, torch.ones(x.shape[1], 1, 1, 1), backend="cpu")


@kept
def test_a_freed_result_serves_the_next():
    x = torch.rand(LARGE)
    result = _run(x)
    at = result.data_ptr()
    del result
    again = _run(x)
    assert again.data_ptr() == at
    torch.testing.assert_close(again, x, rtol=0, atol=0)


def test_results_alive_share_nothing_and_survive_a_release():
    inputs = [torch.rand(LARGE[0] + i % 3, *LARGE[1:]) for i in range(12)]
    results = [_run(x) for x in inputs]
    del results[3:9]
    assert dwsep.release_memory() >= 0
    more = [_run(x) for x in inputs[3:9]]
    for x, result in zip(inputs[:3] + inputs[9:] + inputs[3:9], results + more, strict=True):
        torch.testing.assert_close(result, x, rtol=0, atol=0)


@kept
def test_release_gives_back_what_nobody_uses():
    result = _run(torch.rand(16, *LARGE[1:]))  # 13 MB
    dwsep.release_memory()
    del result
    assert dwsep.release_memory() >= 16 * 64 * 56 * 56 * 4
    assert dwsep.release_memory() == 0


def test_from_many_threads():
    faults = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for i in range(40):
            x = torch.rand((1 + i % 4, *LARGE[1:]), generator=generator)
            kept.append((x, _run(x)))
            if len(kept) > 3:
                expected, result = kept.pop(i % 3)
                if not torch.equal(expected, result):
                    faults.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_result_is_a_tensor_like_any_other():
    x = torch.rand(LARGE)
    result = _run(x)
    saved = io.BytesIO()
    torch.save(result, saved)
    saved.seek(0)
    for other in (copy.deepcopy(result), torch.load(saved), torch.from_numpy(result.numpy())):
        assert torch.equal(other, x)
    # Moves it: what NumPy saw is gone with the memory before.
    assert torch.equal(result.share_memory_(), x)
    assert result.is_shared()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a call of Unix")
def test_in_a_child_of_fork():
    program = f"""
import os, torch, dwsep
from dwsep.functional import depthwise_conv2d
torch.set_num_threads(1)
x = torch.rand({LARGE}); weight = torch.ones(64, 1, 1, 1)
mine = depthwise_conv2d(x, weight, backend="cpu")
child = os.fork()
if child == 0:
    theirs = depthwise_conv2d(x + 1, weight, backend="cpu")
    os._exit(0 if torch.equal(theirs, x + 1) and torch.equal(mine, x) else 1)
assert os.waitpid(child, 0)[1] == 0 and torch.equal(mine, x)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_switched_off_by_the_environment():
    program = f"""
import torch, dwsep
from dwsep.functional import depthwise_conv2d
for _ in range(3):
    depthwise_conv2d(torch.rand({LARGE}), torch.ones(64, 1, 1, 1), backend="cpu")
assert dwsep.release_memory() == 0
"""
    environment = {**os.environ, "DWSEP_KEEP_MEMORY": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)
