"""Images in memory, and their statistics."""

from __future__ import annotations

import pytest
import torch

from dwsep.training.data import ImageDataset, channel_statistics


def dataset(**changes):
    values = {
        "images": torch.zeros(3, 1, 4, 5, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 1]),
        "class_names": ("a", "b"),
        "name": "toy",
    }
    return ImageDataset(**{**values, **changes})


def test_image_dataset_tells_its_shape():
    data = dataset()
    assert (len(data), data.num_classes, data.in_channels, data.image_size) == (3, 2, 1, (4, 5))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(3, 1, 4, 5)}, TypeError, r"images must be uint8, got torch\.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, TypeError, r"labels must be int64, got torch\.int32"),
        ({"images": torch.zeros(3, 4, 5, dtype=torch.uint8)}, ValueError, r"images must have shape \(N, C, H, W\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"toy: 3 images need labels of shape \(3,\), got \(2,\)"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"need labels of shape \(3,\)"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, r"label -1 at index 1 is outside \[0, 2\)"),
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"label 2 at index 2 is outside \[0, 2\)"),
        (
            {"images": torch.zeros(0, 1, 4, 5, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
            ValueError,
            "the data set is empty",
        ),
    ],
)
def test_image_dataset_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        dataset(**changes)


def test_channel_statistics_agree_with_float64():
    images = torch.randint(0, 256, (20, 3, 7, 6), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    exact = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), exact.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), exact.std((0, 2, 3), correction=0))


def test_channel_statistics_of_a_constant_channel_can_be_divided_by():
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_channel_statistics_refuse_other_dtypes():
    with pytest.raises(TypeError, match="images must be uint8"):
        channel_statistics(torch.zeros(1, 1, 2, 2))
