"""The IDX format, in which MNIST and its descendants are distributed."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dwsep.errors import unknown_name
from dwsep.training.data.dataset import ImageDataset

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# IDX's third byte is the element type; 8 is unsigned byte, the only one that image files use.
_UNSIGNED_BYTE = 8
_PREFIXES = {"train": "train", "test": "t10k"}
_HINT = "the Debian package dataset-fashion-mnist installs the files in " + str(DEBIAN_FOLDER)


def read_idx(path: str | os.PathLike[str], num_dims: int) -> Tensor:
    """Read one IDX file of unsigned bytes, plain or gzipped (told apart by content, not by name).

    Args:
        path: The file.
        num_dims: Dimensions that the file must have: 3 for images, 1 for labels.

    Returns:
        A uint8 tensor with num_dims dimensions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged, too long, or has another magic number.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: the gzip data is truncated or damaged ({error})") from error
    header_size = 4 + 4 * num_dims
    expected = bytes((0, 0, _UNSIGNED_BYTE, num_dims))
    if raw[:4] != expected:
        raise ValueError(
            f"{path}: wrong magic number 0x{raw[:4].hex() or 'nothing'}, expected 0x{expected.hex()} "
            f"(IDX, unsigned byte, {num_dims} dimension{'s' if num_dims > 1 else ''})"
        )
    if len(raw) < header_size:
        raise ValueError(f"{path}: truncated inside the header, {len(raw)} of {header_size} bytes")
    shape = struct.unpack(f">{num_dims}I", raw[4:header_size])
    size = 1
    for extent in shape:
        size *= extent
    if len(raw) - header_size != size:
        problem = "truncated" if len(raw) - header_size < size else "too long"
        raise ValueError(f"{path}: {problem}, shape {shape} needs {size} bytes of data, got {len(raw) - header_size}")
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header_size).reshape(shape)


def encode_idx(array: Tensor) -> bytes:
    """Encode a tensor as a gzipped IDX file, the same bytes every time.

    Args:
        array: Any shape, dtype uint8.

    Returns:
        The file's content; the gzip header holds neither name nor time.

    Raises:
        TypeError: If array is not uint8.

    Example:
        >>> encode_idx(torch.zeros(2, dtype=torch.uint8)) == encode_idx(torch.zeros(2, dtype=torch.uint8))
        True
    """
    if array.dtype != torch.uint8:
        raise TypeError(f"array must be uint8, got {array.dtype}")
    header = bytes((0, 0, _UNSIGNED_BYTE, array.dim())) + struct.pack(f">{array.dim()}I", *array.shape)
    return _gzip(header + array.contiguous().numpy().tobytes())


def _gzip(content: bytes) -> bytes:
    # The gzip module writes another operating system byte from one Python version to the next.
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = compressor.compress(content) + compressor.flush()
    trailer = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes(4) + b"\x00\x02\xff" + body + trailer


def load_idx(
    data_dir: str | os.PathLike[str],
    split: str,
    *,
    class_names: tuple[str, ...] = FASHION_MNIST_CLASSES,
    name: str = "fashion-mnist",
) -> ImageDataset:
    """Load one split of an MNIST-like data set from a folder of IDX files, plain or gzipped.

    Args:
        data_dir: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each with or without .gz.
        split: "train" or "test".
        class_names: One name per class.
        name: What the data is called in logs and reports.

    Returns:
        The data set, images of shape (N, 1, H, W).

    Raises:
        FileNotFoundError: If the folder or a file is missing.
        ValueError: If split is unknown, a file is damaged, the counts differ, or a label is out of range.
    """
    if split not in _PREFIXES:
        raise unknown_name("split", split, tuple(_PREFIXES))
    folder = Path(data_dir)
    images_path = _find(folder, f"{_PREFIXES[split]}-images-idx3-ubyte")
    labels_path = _find(folder, f"{_PREFIXES[split]}-labels-idx1-ubyte")
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels")
    return ImageDataset(images.unsqueeze(1), labels.to(torch.int64), class_names, f"{name} {split}")


def load_fashion_mnist_subset(split: str) -> ImageDataset:
    """Load the balanced Fashion-MNIST subset that comes with the package.

    Args:
        split: "train" (10,000 images) or "test" (2,000 images).

    Returns:
        The data set, images of shape (N, 1, 28, 28), the same number of each class, in shuffled order.

    Raises:
        ValueError: If split is unknown.
        FileNotFoundError: If the package was installed without its data.

    Example:
        >>> data = load_fashion_mnist_subset("test")
        >>> tuple(data.images.shape), data.class_names[9]
        ((2000, 1, 28, 28), 'Ankle boot')
    """
    assets = Path(__file__).resolve().parent.parent / "assets" / "fashion_mnist"
    return load_idx(assets, split, name="fashion-mnist-subset")


def _find(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist; {_HINT}")
    for candidate in (folder / f"{stem}.gz", folder / stem):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"neither {stem}.gz nor {stem} is in {folder}; {_HINT}")
