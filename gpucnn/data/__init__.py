"""Data sets as NumPy arrays: loading by name or path, splitting, batches, augmentation."""

from gpucnn.data.augment import (
    CenterCrop,
    ColorJitter,
    Compose,
    Cutout,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
)
from gpucnn.data.dataset import Dataset, check_disjoint, overlap, split, to_float
from gpucnn.data.formats import read_idx
from gpucnn.data.generate import x_or_not_x
from gpucnn.data.lazy import LazyImages
from gpucnn.data.loader import Loader
from gpucnn.data.pictures import PictureFiles, read_image, read_image_folder
from gpucnn.data.sources import Source, available, has_test_images, load

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Cutout",
    "Dataset",
    "LazyImages",
    "Loader",
    "Normalize",
    "PictureFiles",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "Source",
    "available",
    "check_disjoint",
    "has_test_images",
    "load",
    "overlap",
    "read_idx",
    "read_image",
    "read_image_folder",
    "split",
    "to_float",
    "x_or_not_x",
]
