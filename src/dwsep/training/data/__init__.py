"""Data in memory: images, images with masks, texts, series; loading, normalisation, seeded batches."""

from dwsep.training.data.batches import BatchLoader, pad_crop_flip, sequential_batches
from dwsep.training.data.dataset import ImageDataset, channel_statistics
from dwsep.training.data.examples import Examples, Normalisation
from dwsep.training.data.folder import load_image_folder
from dwsep.training.data.huggingface import load_hub_images
from dwsep.training.data.idx import FASHION_MNIST_CLASSES, encode_idx, load_fashion_mnist_subset, load_idx, read_idx
from dwsep.training.data.masks import SegmentationDataset, load_mask_folder
from dwsep.training.data.series import SeriesDataset, load_series
from dwsep.training.data.text import TextDataset, Vocabulary, load_text

__all__ = [
    "FASHION_MNIST_CLASSES",
    "BatchLoader",
    "Examples",
    "ImageDataset",
    "Normalisation",
    "SegmentationDataset",
    "SeriesDataset",
    "TextDataset",
    "Vocabulary",
    "channel_statistics",
    "encode_idx",
    "load_fashion_mnist_subset",
    "load_hub_images",
    "load_idx",
    "load_image_folder",
    "load_mask_folder",
    "load_series",
    "load_text",
    "pad_crop_flip",
    "read_idx",
    "sequential_batches",
]
