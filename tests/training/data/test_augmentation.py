"""Random changes depend on their seed alone, keep shapes, and move a mask with its image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dwsep.training.data import BatchLoader
from dwsep.training.data.augmentation import augment_image, augment_pair
from tests.training.toys import make_data

pytest.importorskip("torchvision", reason="torchvision is not installed")


def test_augmentation_moves_image_and_mask_alike():
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[:, 10:20] = 1
    image = (mask * 200)[None].repeat(3, 1, 1)
    state = torch.get_rng_state()
    seen = set()
    for seed in range(8):
        moved, moved_mask = augment_pair(image, mask, seed)
        again, again_mask = augment_pair(image, mask, seed)
        assert torch.equal(moved, again)
        assert torch.equal(moved_mask, again_mask)
        bright = moved[0].float() > moved[0].float().mean()
        assert (bright == moved_mask.bool()).float().mean() > 0.9
        seen.add(int(moved_mask.sum()))
    assert len(seen) > 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_image_depends_on_the_seed_alone(channels):
    image = torch.randint(0, 256, (channels, 20, 24), dtype=torch.uint8)
    state = torch.get_rng_state()
    first, again, other = (augment_image(image, seed) for seed in (1, 1, 2))
    assert (first.shape, first.dtype, type(first)) == (image.shape, torch.uint8, torch.Tensor)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_crops_go_on_from_any_batch():
    data = replace(make_data(24), augmentation="crop")
    loader = BatchLoader(data, 8, data.statistics(), seed=3, augment=True)
    whole = list(loader.epoch(1))
    rest = list(loader.epoch(1, start=1))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(whole[1:], rest, strict=True))
    plain = BatchLoader(data, 8, data.statistics(), seed=3)
    assert not torch.equal(whole[0][0], next(iter(plain.epoch(1)))[0])


def test_an_unknown_augmentation_is_named():
    with pytest.raises(ValueError, match="augmentation: unknown name 'mixup'; valid names are 'shift', 'crop'"):
        replace(make_data(4), augmentation="mixup")
