"""Streamed moments equal those of all patches at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dwsep.convert._gram import PatchMoments
from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry

# torch's own, of its dense convolution.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")


def unfolded(conv, x):
    """Patches by the convolution itself: one output channel per element of a patch."""
    size = conv.weight[0].numel()
    probe = torch.eye(size, dtype=x.dtype).view(size, *conv.weight.shape[1:])
    return conv._conv_forward(x, probe, None).movedim(1, -1).reshape(-1, size)


CASES = [
    (torch.nn.Conv2d(3, 4, 3, padding=1), (9, 8)),
    (torch.nn.Conv2d(3, 4, (2, 4), stride=(2, 1), padding=(1, 3), dilation=(2, 1)), (9, 11)),
    (torch.nn.Conv2d(2, 4, 4, padding="same"), (9, 8)),
    (torch.nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect", stride=2), (9, 8)),
    (torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (5, 6)),
    (torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate"), (5, 6)),
    (torch.nn.Conv1d(4, 4, 5, dilation=3), (30,)),
    (torch.nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1)), (4, 5, 6)),
]


def sums_for(conv):
    ndim = conv.weight.dim() - 2
    geometry = ConvGeometry.make(ndim, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return PatchMoments(conv.in_channels, geometry, conv.padding_mode)


@pytest.mark.parametrize("conv, size", CASES)
@pytest.mark.parametrize("centred", [False, True])
def test_moments_equal_those_of_all_patches(conv, size, centred, monkeypatch):
    monkeypatch.setattr("dwsep.convert._gram._SHRINKAGE", 0.0)
    monkeypatch.setattr("dwsep.convert._gram._CHUNK_BYTES", 4 * conv.weight[0].numel() * 7)  # in many pieces
    batches = [torch.randn(n, conv.in_channels, *size) + 1 for n in (3, 1, 2)]
    sums = sums_for(conv)
    for batch in batches:
        sums.add(batch)
    patches = torch.cat([unfolded(conv, batch) for batch in batches]).double()
    known = sums.moments(centred=centred)
    assert sums.count == len(patches)
    torch.testing.assert_close(known.mean, patches.mean(0))
    around = patches - patches.mean(0) if centred else patches
    wanted = around.mT @ around / len(patches)
    torch.testing.assert_close(known.gram, wanted, rtol=1e-3, atol=1e-3)


def test_unbatched_input():
    one, many = (sums_for(torch.nn.Conv2d(3, 4, 3)) for _ in range(2))
    x = torch.randn(3, 7, 7)
    one.add(x)
    many.add(x[None])
    assert torch.equal(one.products, many.products)


def test_a_sample_of_the_patches_has_about_their_moments():
    conv = torch.nn.Conv2d(2, 4, 3, padding=1)
    x = F.avg_pool2d(torch.randn(8, 2, 42, 42), 3, 1)
    whole, some = sums_for(conv), sums_for(conv)
    whole.add(x)
    some.add(x, at_most=6000)
    assert (whole.count, some.count) == (12800, 6000)
    torch.testing.assert_close(some.moments().gram, whole.moments().gram, rtol=0.2, atol=0.02)


def test_few_patches_are_pulled_towards_independent_elements():
    conv = torch.nn.Conv2d(8, 4, 3)
    sums = sums_for(conv)
    sums.add(torch.randn(1, 8, 3, 4))
    values = torch.linalg.eigvalsh(sums.moments().gram)
    assert values.min() > 1e-3 * values.max()


def test_nothing_seen_or_other_channels():
    sums = sums_for(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ArgumentError, match="no input was seen"):
        sums.moments()
    with pytest.raises(ArgumentError, match="x must have 3 channels"):
        sums.add(torch.ones(1, 4, 5, 5))
