"""Image classification data in memory: loading, normalisation, seeded batches."""

from dwsep.training.data.batches import BatchLoader, Normalisation, pad_crop_flip, sequential_batches
from dwsep.training.data.dataset import ImageDataset, channel_statistics
from dwsep.training.data.folder import load_image_folder
from dwsep.training.data.idx import FASHION_MNIST_CLASSES, encode_idx, load_fashion_mnist_subset, load_idx, read_idx

__all__ = [
    "FASHION_MNIST_CLASSES",
    "BatchLoader",
    "ImageDataset",
    "Normalisation",
    "channel_statistics",
    "encode_idx",
    "load_fashion_mnist_subset",
    "load_idx",
    "load_image_folder",
    "pad_crop_flip",
    "read_idx",
    "sequential_batches",
]
