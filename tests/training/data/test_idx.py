"""IDX files: what is written is read back, and what is wrong with a file is said."""

from __future__ import annotations

import gzip
import struct

import pytest
import torch

from dwsep.training.data import FASHION_MNIST_CLASSES, encode_idx, load_fashion_mnist_subset, load_idx, read_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def folder(tmp_path):
    images = torch.randint(0, 256, (6, 5, 4), dtype=torch.uint8)
    (tmp_path / f"{IMAGES}.gz").write_bytes(encode_idx(images))
    (tmp_path / f"{LABELS}.gz").write_bytes(encode_idx(torch.tensor([0, 1, 2, 9, 5, 0], dtype=torch.uint8)))
    return tmp_path, images


def plain(path):
    return gzip.decompress(path.read_bytes())


def test_load_idx_reads_what_was_written(folder):
    path, images = folder
    data = load_idx(path, "train")
    assert torch.equal(data.images[:, 0], images)
    assert data.images.shape == (6, 1, 5, 4)
    assert data.labels.tolist() == [0, 1, 2, 9, 5, 0]
    assert data.class_names == FASHION_MNIST_CLASSES


def test_load_idx_reads_plain_files_too(folder):
    path, images = folder
    for name in (IMAGES, LABELS):
        (path / name).write_bytes(plain(path / f"{name}.gz"))
        (path / f"{name}.gz").unlink()
    assert torch.equal(load_idx(path, "train").images[:, 0], images)


def test_encode_idx_writes_what_gunzip_reads():
    content = gzip.decompress(encode_idx(torch.arange(6, dtype=torch.uint8).reshape(2, 3)))
    assert content == struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(range(6))


def test_encode_idx_refuses_other_dtypes():
    with pytest.raises(TypeError, match=r"array must be uint8, got torch\.int64"):
        encode_idx(torch.arange(3))


def test_load_idx_names_the_missing_file_and_the_package(folder):
    path, _ = folder
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte.* dataset-fashion-mnist"):
        load_idx(path, "test")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .*dataset-fashion-mnist"):
        load_idx(path / "nowhere", "train")


def test_load_idx_lists_the_splits(folder):
    with pytest.raises(ValueError, match="split: unknown name 'val'; valid names are 'train', 'test'"):
        load_idx(folder[0], "val")


def test_load_idx_refuses_unequal_counts(folder):
    path, _ = folder
    (path / f"{LABELS}.gz").write_bytes(encode_idx(torch.zeros(5, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"has 6 images but .* has 5 labels"):
        load_idx(path, "train")


def test_load_idx_refuses_a_label_out_of_range(folder):
    path, _ = folder
    (path / f"{LABELS}.gz").write_bytes(encode_idx(torch.tensor([0, 1, 2, 3, 10, 0], dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"label 10 at index 4 is outside \[0, 10\)"):
        load_idx(path, "train")


def test_load_idx_refuses_an_empty_data_set(folder):
    path, _ = folder
    (path / f"{IMAGES}.gz").write_bytes(encode_idx(torch.zeros(0, 5, 4, dtype=torch.uint8)))
    (path / f"{LABELS}.gz").write_bytes(encode_idx(torch.zeros(0, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="the data set is empty"):
        load_idx(path, "train")


@pytest.mark.parametrize("kept", [2, 3, 9, 11, 30, -9, -1])
def test_read_idx_refuses_a_truncated_gzip(folder, kept):
    path = folder[0] / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{IMAGES}.gz: the gzip data is truncated or damaged"):
        read_idx(path, 3)


def test_read_idx_refuses_a_flipped_bit(folder):
    path = folder[0] / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: b"", "wrong magic number 0xnothing, expected 0x00000803"),
        (lambda c: b"PK\x03\x04" + c[4:], "wrong magic number 0x504b0304"),
        (lambda c: c[:2] + b"\x0d" + c[3:], "wrong magic number 0x00000d03"),
        (lambda c: c[:3] + b"\x01" + c[4:], "wrong magic number 0x00000801"),
        (lambda c: c[:10], "truncated inside the header, 10 of 16 bytes"),
        (lambda c: c[:-1], r"truncated, shape \(6, 5, 4\) needs 120 bytes of data, got 119"),
        (lambda c: c + b"\0", r"too long, shape \(6, 5, 4\) needs 120 bytes of data, got 121"),
        (lambda c: c[:4] + b"\xff" * 12, r"truncated, shape \(4294967295, 4294967295, 4294967295\)"),
    ],
)
def test_read_idx_refuses(folder, change, message):
    path = folder[0] / IMAGES
    path.write_bytes(change(plain(folder[0] / f"{IMAGES}.gz")))
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize(("split", "count"), [("train", 10_000), ("test", 2_000)])
def test_load_fashion_mnist_subset_is_balanced_and_shuffled(split, count):
    data = load_fashion_mnist_subset(split)
    assert data.images.shape == (count, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert torch.bincount(data.labels).tolist() == [count // 10] * 10
    # Any hundred neighbours are a fair sample, which sorted labels would not be.
    assert all(len(chunk.unique()) == 10 for chunk in data.labels.split(100))
    assert len(data.images.flatten(1).unique(dim=0)) > 0.99 * count


def test_load_fashion_mnist_subset_keeps_train_and_test_apart():
    train, test = (load_fashion_mnist_subset(split).images.flatten(1) for split in ("train", "test"))
    known = {row.numpy().tobytes() for row in train}
    shared = sum(row.numpy().tobytes() in known for row in test)
    assert shared <= 2  # the original data set holds a few twins
