"""Batches: complete, normalised, and a function of seed and epoch alone."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dwsep.training.data import BatchLoader, ImageDataset, Normalisation, pad_crop_flip, sequential_batches
from tests.training.toys import make_data

NORMALISATION = Normalisation((0.5,), (0.25,))


@pytest.fixture
def data():
    images = torch.randint(0, 256, (22, 1, 6, 5), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(22)  # tells them apart
    return ImageDataset(images, torch.arange(22) % 4, ("a", "b", "c", "d"), "toy")


def numbers(images):
    return ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long().tolist()


def loader(data, **options):
    return BatchLoader(data, **{"batch_size": 5, "normalisation": NORMALISATION, "seed": 0, **options})


def test_batch_loader_gives_each_image_once_with_its_label(data):
    seen = []
    for images, labels in loader(data).epoch(0):
        assert images.shape == (5, 1, 6, 5)
        assert torch.equal(labels, torch.tensor(numbers(images)) % 4)
        seen += numbers(images)
    assert len(seen) == len(set(seen)) == 20 == 5 * len(loader(data))


def test_batch_loader_depends_on_seed_and_epoch_alone(data):
    def stream(seed, epoch):
        return torch.cat([images for images, _ in loader(data, seed=seed, augment=True).epoch(epoch)])

    first = stream(3, 1)
    torch.manual_seed(123)
    assert torch.equal(first, stream(3, 1))
    others = [stream(3, 0), stream(3, 2), stream(4, 1), stream(1, 3)]
    assert not any(torch.equal(first, other) for other in others)


def test_batch_loader_leaves_the_global_generator_alone(data):
    before = torch.get_rng_state()
    list(loader(data, augment=True).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("augment", [True, False])
def test_batch_loader_goes_on_inside_an_epoch(data, augment):
    whole = list(loader(data, augment=augment).epoch(2))
    rest = list(loader(data, augment=augment).epoch(2, start=2))
    assert len(rest) == 2
    for (a, b), (c, d) in zip(whole[2:], rest, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_batch_loader_leaves_out_other_images_each_epoch(data):
    def left_out(epoch):
        return set(range(22)) - {n for images, _ in loader(data).epoch(epoch) for n in numbers(images)}

    assert len({frozenset(left_out(epoch)) for epoch in range(6)}) > 1


def test_batch_loader_gives_the_memory_format_asked_for():
    pixels = torch.zeros(4, 3, 6, 5, dtype=torch.uint8)
    data = ImageDataset(pixels, torch.zeros(4, dtype=torch.int64), ("a",), "toy")
    options = {"normalisation": Normalisation((0.0,) * 3, (1.0,) * 3), "memory_format": torch.channels_last}
    images, _ = next(loader(data, batch_size=4, augment=True, **options).epoch(0))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(0, "batch_size must be positive, got 0"), (23, "must be at most 22, the images of toy, got 23")],
)
def test_batch_loader_refuses(data, batch_size, message):
    with pytest.raises(ValueError, match=message):
        loader(data, batch_size=batch_size)


def test_sequential_batches_give_everything_in_order(data):
    batches = list(sequential_batches(data, 8, NORMALISATION))
    assert [len(images) for images, _ in batches] == [8, 8, 6]
    assert [n for images, _ in batches for n in numbers(images)] == list(range(22))
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_normalisation_agrees_with_torchvision():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.3, 0.2, 0.1)
    expected = reference.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(Normalisation(mean, std)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5), "one value per channel"),
        ((0.5,), (0.0,), "std must be positive"),
        ((0.5,), (float("nan"),), "std must be positive"),
    ],
)
def test_normalisation_refuses(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalisation(mean, std)


def test_normalisation_refuses_other_channels():
    with pytest.raises(ValueError, match="images have 3 channels, the mean has 1"):
        NORMALISATION(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


def test_pad_crop_flip_agrees_with_torchvision_image_by_image():
    images = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8)
    offsets = torch.randint(0, 5, (40, 2))
    flips = torch.rand(40) < 0.5
    actual = pad_crop_flip(images, offsets, flips)
    for image, (row, column), flip, result in zip(images, offsets.tolist(), flips, actual, strict=True):
        expected = reference.crop(reference.pad(image, [2, 2, 2, 2]), row, column, 6, 5)
        assert torch.equal(reference.horizontal_flip(expected) if flip else expected, result)


def test_processes_share_every_batch_and_every_evaluation():
    data = make_data(50)
    normalisation = data.statistics()
    whole = BatchLoader(data, 12, normalisation, seed=3, augment=True)
    shares = [BatchLoader(data, 12, normalisation, seed=3, augment=True, rank=r, parts=3) for r in range(3)]
    for (images, labels), *parts in zip(whole.epoch(2), *(share.epoch(2) for share in shares), strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[1] for part in parts]))
    seen = [labels for r in range(3) for _, labels in sequential_batches(data, 8, normalisation, rank=r, parts=3)]
    assert sorted(torch.cat(seen).tolist()) == sorted(data.labels.tolist())
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 5 processes, got 12"):
        BatchLoader(data, 12, normalisation, seed=3, parts=5)
