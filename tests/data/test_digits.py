from __future__ import annotations

import pytest
import torch

from akd.data import DataConfig, Dataset, load
from akd.data.augment import Augment


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(name="digits"))


def test_sizes_and_types(digits: Dataset) -> None:
    assert digits.images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.images.dtype == digits.test_images.dtype == torch.uint8
    assert digits.labels.dtype == digits.test_labels.dtype == torch.int64
    assert digits.labels.shape == (1437,)
    assert digits.test_labels.shape == (360,)
    assert digits.classes == tuple("0123456789")
    assert digits.channels == 1
    assert set(digits.labels.tolist()) == set(range(10))


def test_the_whole_byte_is_used(digits: Dataset) -> None:
    levels = digits.images.unique().tolist()
    assert levels == [round(i * 255 / 16) for i in range(17)]


def test_test_split_is_stratified_and_never_moves(digits: Dataset) -> None:
    """Every test accuracy ever reported on the digits stands on exactly these images."""
    assert digits.test_labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert digits.hash == "c4621640964ef38b"
    again = load(DataConfig(name="digits", split_seed=5))
    assert torch.equal(again.test_images, digits.test_images)


def test_train_and_test_are_the_source_and_disjoint(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = sorted((*row, label) for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))
    images = torch.cat([digits.images, digits.test_images]).flatten(1).double().mul(16 / 255).round().tolist()
    labels = torch.cat([digits.labels, digits.test_labels]).tolist()
    assert sorted((*row, label) for row, label in zip(images, labels, strict=True)) == source


def test_mean_and_std_are_those_of_the_training_images(digits: Dataset) -> None:
    values = digits.images.double() / 255
    assert digits.mean == pytest.approx([float(values.mean())], abs=1e-4)
    assert digits.std == pytest.approx([float(values.std())], abs=1e-4)


def test_view_does_not_mirror(digits: Dataset) -> None:
    assert digits.augment == Augment(padding=1, flip=False)
