"""Tensors of more than 2^31 elements: an index of 32 bits would read or write somewhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dwsep

ops = torch.ops.dwsep
LIMIT = 2**31


def _available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)


pytestmark = [
    pytest.mark.sweep,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
    ),
    pytest.mark.skipif(
        _available_bytes() < 14 * 2**30 or "LD_PRELOAD" in os.environ, reason="needs 14 GiB of free memory"
    ),
]


@pytest.fixture(autouse=True)
def _no_filling():
    """Filling gigabytes with NaN takes longer than the kernels: every element's place is checked here otherwise."""
    torch.use_deterministic_algorithms(False)


def make(channels: int, side: int, channels_last: bool) -> Tensor:
    """Zeros (1, channels, side, side) in bfloat16, with small integers in the last and the first 12 rows."""
    x = torch.zeros((1, side, side, channels) if channels_last else (1, channels, side, side), dtype=torch.bfloat16)
    x = x.movedim(-1, 1) if channels_last else x
    assert x.numel() > LIMIT
    for rows in (slice(0, 12), slice(side - 12, side)):
        x[:, :, rows] = torch.randint(-2, 3, (1, channels, 12, side), dtype=torch.bfloat16)
    return x


def check_rows(result: Tensor, x: Tensor, weight: Tensor) -> None:
    """``result`` is the convolution of ``x`` padded by 1: its first and last ten rows, and zeros in the middle."""
    side = x.shape[2]
    for rows, padded, kept in (
        (slice(0, 12), (1, 1, 1, 0), slice(0, 10)),
        (slice(side - 12, side), (1, 1, 0, 1), slice(side - 10, side)),
    ):
        expected = F.conv2d(F.pad(x[:, :, rows].float(), padded), weight.float(), groups=x.shape[1])
        expected = expected[:, :, :10] if rows.start == 0 else expected[:, :, -10:]
        assert torch.equal(result[:, :, kept].float(), expected)
    assert not result[:, :, side // 2].any()


# Planes of 2^30 and more elements, many planes, and pixels of 64 consecutive channels.
@pytest.mark.parametrize(
    ("channels", "side", "channels_last"), [(2, 32800, False), (64, 5800, False), (64, 5800, True)]
)
def test_depthwise_conv_and_its_input_gradient(channels, side, channels_last):
    x = make(channels, side, channels_last)
    weight = torch.randint(-2, 3, (channels, 1, 3, 3), dtype=torch.bfloat16)
    geometry = ([1, 1], [1] * 4, [1, 1])
    out = ops.depthwise_conv(x, weight, None, *geometry, "none")
    check_rows(out, x, weight)
    del out
    # The gradient of the input is the convolution of the gradient with the kernel turned round.
    grads = ops.depthwise_conv_backward(x, x, weight, None, *geometry, "none", [True, False, False])
    check_rows(grads[0], x, weight.flip(2, 3))


@pytest.mark.parametrize("channels_last", [False, True])
def test_separable_conv_of_a_large_input(channels_last):
    x = make(64, 5800, channels_last)
    depthwise = torch.randint(-1, 2, (64, 1, 3, 3), dtype=torch.bfloat16)
    pointwise = torch.randint(-1, 2, (2, 64, 1, 1), dtype=torch.bfloat16)
    out = ops.separable_conv(x, depthwise, pointwise, None, None, [1, 1], [1] * 4, [1, 1], "none", "none", "none")
    last = F.conv2d(F.pad(x[:, :, -11:].float(), (1, 1, 0, 1)), depthwise.float(), groups=64)
    assert torch.equal(out[:, :, -10:].float(), F.conv2d(last, pointwise.float()))
    assert not out[:, :, 2900].any()
