"""CIFAR-10 and CIFAR-100 from their official files, through torchvision.

The official files are pickles. torchvision compares each with the published checksum before it opens it, and so does
:func:`_open`, so nothing but those exact bytes is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from akd.data.augment import Augment
from akd.data.dataset import Dataset, readers
from akd.errors import ExperimentError


def _class(name: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _root(name: str, folder: Path) -> Path:
    """The folder that holds ``cifar-100-python``: ``folder`` itself or ``folder/cifar100``."""
    base = _class(name).base_folder
    return folder if (folder / base).is_dir() else folder / name


def _open(name: str, folder: Path) -> tuple[Any, Any]:
    root = _root(name, folder)
    base = root / _class(name).base_folder
    if not base.is_dir():
        raise ExperimentError(
            f"{name} is not in {folder} (looked for {base}); fetch it with 'akd data prepare {name}' "
            "or name its folder with --data-dir",
            key="data.dir",
        )
    try:
        return _class(name)(root, train=True), _class(name)(root, train=False)
    except RuntimeError:
        raise ExperimentError(
            f"{base} is incomplete or damaged (checksums differ); remove it and run 'akd data prepare {name}'",
            key="data.dir",
        ) from None


def _dataset(name: str, folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    train, test = _open(name, folder)

    def images(part: Any) -> torch.Tensor:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()

    return Dataset(
        name=name,
        images=images(train),
        labels=torch.tensor(train.targets),
        test_images=images(test),
        test_labels=torch.tensor(test.targets),
        classes=tuple(train.classes),
        mean=mean,
        std=std,
        augment=Augment(padding=4, flip=True),
    )


@readers.register("cifar100", images="50,000 train, 10,000 test; 32x32 colour, 100 classes", files="akd data prepare")
def cifar100(folder: Path) -> Dataset:
    """CIFAR-100 with the literature's normalisation and crop-and-flip view."""
    return _dataset("cifar100", folder, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@readers.register("cifar10", images="50,000 train, 10,000 test; 32x32 colour, 10 classes", files="akd data prepare")
def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 with the literature's normalisation and crop-and-flip view."""
    return _dataset("cifar10", folder, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def prepare(name: str, folder: Path) -> Path:
    """Download once, whoever asks: under a file lock, into a side folder that is renamed when its checksums hold.

    Returns:
        The folder that holds the files, downloaded now or found complete.

    Raises:
        ExperimentError: the download failed or the folder cannot be written.
    """
    from filelock import FileLock

    kind = _class(name)
    try:
        final = _root(name, folder) / kind.base_folder
        if final.is_dir():  # without the lock: it appears whole, and a shared folder may be read-only
            _open(name, folder)
            return final
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            final = _root(name, folder) / kind.base_folder
            if final.is_dir():  # somebody else fetched it meanwhile
                _open(name, folder)
                return final
            side = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
            try:
                kind(side, train=True, download=True)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(side / kind.base_folder, final)
            finally:
                shutil.rmtree(side, ignore_errors=True)
            return final
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperimentError(f"{name} could not be fetched into {folder}: {reason}", key="data") from None
