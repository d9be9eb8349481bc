"""Readers, splits, augmentation plans and device loaders."""

from akd.data import cifar as cifar  # registers itself
from akd.data import digits as digits  # registers itself
from akd.data import imagefolder as imagefolder  # registers itself
from akd.data.batch import Batch, rand
from akd.data.dataset import DataConfig, Dataset, TrainData, data_dir, load, readers, split
from akd.data.plan import EpochPlan, training_order

__all__ = [
    "Batch",
    "DataConfig",
    "Dataset",
    "EpochPlan",
    "TrainData",
    "data_dir",
    "load",
    "rand",
    "readers",
    "split",
    "training_order",
]
