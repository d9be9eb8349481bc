"""Handwritten digits: 1,797 grey 8x8 images that travel with scikit-learn, so a search can start on a bare machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from akd.data.augment import Augment
from akd.data.dataset import Dataset, readers, stratified

TEST_IMAGES = 360


def _table() -> Tensor:
    """[1797, 65]: 64 pixels of 0 to 16, and the class.

    Read from scikit-learn's file: importing the package, with what it imports, takes longer than a short search's
    trial, and every worker would do it.
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float64))


@readers.register("digits", images="1,437 train, 360 test; 8x8 grey, 10 classes", files="none: part of scikit-learn")
def digits(folder: Path) -> Dataset:
    """The digits with a fixed, stratified test split (the source has none)."""
    table = _table()
    # Sixteen grey levels are stored; 255/16 spreads them over the byte.
    images = table[:, :64].reshape(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    labels = table[:, 64].long()
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
