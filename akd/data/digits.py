"""Handwritten digits: 1,797 grey 8x8 images that travel with scikit-learn, so a search can start on a bare machine."""

from __future__ import annotations

from pathlib import Path

import torch

from akd.data.augment import Augment
from akd.data.dataset import Dataset, readers, stratified

TEST_IMAGES = 360


@readers.register("digits", images="1,437 train, 360 test; 8x8 grey, 10 classes", files="none: part of scikit-learn")
def digits(folder: Path) -> Dataset:
    """The digits with a fixed, stratified test split (the source has none)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Sixteen grey levels are stored; 255/16 spreads them over the byte.
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    rows = torch.arange(len(labels))
    test = stratified(labels, rows, TEST_IMAGES, "digits-test")
    train = rows[~torch.isin(rows, test)]
    return Dataset(
        name="digits",
        images=images[train],
        labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(c) for c in range(10)),
        mean=(0.3058,),
        std=(0.3762,),
        augment=Augment(padding=1),  # mirrored digits are no digits
    )
