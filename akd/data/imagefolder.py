"""Folders of pictures, a folder a class: ``DIR/train/<class>/*.jpg`` and ``DIR/test/`` or ``DIR/val/`` with the same.

The second folder is the *test* file, whatever it is called: validation images are cut from the training images, as for
every data set. Pictures are decoded once, to squares in a memory-mapped store (:mod:`akd.data.store`), and random
boxes are cut from these: of a long picture the ends are never seen.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from akd.data import store
from akd.data.augment import Augment, ResizedCrop, View
from akd.data.dataset import Dataset, readers
from akd.errors import ExperimentError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True)
class Listing:
    """What lies in a folder of pictures.

    Attributes:
        folder: the folder itself.
        classes: names, sorted.
        paths: ``train`` and ``test`` -> picture files, by class and then by name.
        labels: the same keys -> a class for each file.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: dict[str, list[Path]]
    labels: dict[str, list[int]]

    def digest(self) -> str:
        """Hash of relative paths, sizes and times of change; reads no picture."""
        hashed = hashlib.sha256()
        for part, paths in self.paths.items():
            hashed.update(f"{part}\0".encode())
            for path in paths:
                try:
                    stat = path.stat()
                except OSError as error:  # a link to nowhere, or a file that went away
                    raise ExperimentError(f"{path} cannot be read: {error.strerror}", key="data.dir") from None
                name = path.relative_to(self.folder).as_posix()
                hashed.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return hashed.hexdigest()


def _classes(folder: Path) -> list[str]:
    from torchvision.datasets.folder import find_classes

    try:
        return find_classes(folder)[0]
    except OSError:  # missing, no folder, or without folders in it
        return []


def listing(folder: Path) -> Listing:
    """The pictures of a folder, found by torchvision's ImageFolder.

    Raises:
        ExperimentError: folders or pictures are missing, or training and test classes differ.
    """
    from torchvision.datasets import ImageFolder

    classes = _classes(folder / "train")
    # The public Tiny-ImageNet has test/ without classes beside its val/, so a name alone does not decide.
    found = {name: _classes(folder / name) for name in ("test", "val")}
    second = next((name for name, its in found.items() if its == classes), next((n for n, c in found.items() if c), ""))
    if not classes or not second:
        lacks = f"{folder / 'train'}" if not classes else f"{folder / 'val'} or {folder / 'test'}"
        raise ExperimentError(
            f"imagefolder is not in {folder}: {lacks} holds no folder for each class; name its folder with --data-dir",
            key="data.dir",
        )
    if found[second] != classes:
        only = {"train": sorted({*classes} - {*found[second]}), second: sorted({*found[second]} - {*classes})}
        words = [f"{len(names)} only in {part} ({names[0]})" for part, names in only.items() if names]
        raise ExperimentError(f"{folder} has not the same classes in both parts: {', '.join(words)}", key="data.dir")
    paths, labels = {}, {}
    for part, name in (("train", "train"), ("test", second)):
        try:
            samples = ImageFolder(folder / name).samples
        except OSError as error:  # a class without pictures
            raise ExperimentError(f"{folder / name}: {str(error).splitlines()[0]}", key="data.dir") from None
        paths[part], labels[part] = [Path(path) for path, _ in samples], [label for _, label in samples]
    return Listing(folder, tuple(classes), paths, labels)


def sizes(image_size: int | None, stored_size: int | None) -> tuple[int, int]:
    """Sides of the images networks see and of the stored ones: 64 and 64, or 224 and 256.

    Raises:
        ExperimentError: stored smaller than seen.
    """
    size = image_size or 64
    stored = stored_size or (size if size <= 64 else round(size * 8 / 7))
    if stored < size:
        raise ExperimentError(f"must be at least data.image_size, {size}", key="data.stored_size", value=stored)
    return size, stored


def prepare(folder: Path, image_size: int | None = None, stored_size: int | None = None) -> tuple[Path, Listing]:
    """The store of a folder's images, made if it is not there, and what lies in the folder.

    Raises:
        ExperimentError: see :func:`listing` and :func:`akd.data.store.obtain`.
    """
    _, stored = sizes(image_size, stored_size)
    found = listing(folder)
    digest = found.digest()
    # The size networks see is no part of it: 224 and 192 pixels can be cut from the same 256.
    key = hashlib.sha256(json.dumps([store.FORMAT, stored, digest]).encode()).hexdigest()[:16]
    place = store.obtain(key, found.paths, stored, str(folder), lambda: listing(folder).digest() == digest)
    return place, found


@readers.register(
    "imagefolder",
    images="any folder of pictures; data.image_size pixels, 64 by default",
    files="DIR/train/<class>/, DIR/val/<class>/",
    options=("image_size", "stored_size"),
)
def imagefolder(folder: Path, image_size: int | None = None, stored_size: int | None = None) -> Dataset:
    """A folder of pictures with ImageNet's normalisation; up to 64 pixels padded crops, above resized ones."""
    place, found = prepare(folder, image_size, stored_size)
    size, stored = sizes(image_size, stored_size)
    labels = {part: torch.tensor(values) for part, values in found.labels.items()}
    images = {part: store.images(place, part) for part in labels}
    content = store.read(place) or {}
    # Of the decoded bytes, not of the key: copies of a folder differ in times of change, not in what is learnt.
    digest = hashlib.sha256(content["parts"]["train"]["digest"].encode() + labels["train"].numpy().tobytes())
    view: View = Augment(padding=max(1, size // 8), flip=True, size=size)
    if size > 64:
        view = ResizedCrop(stored=stored, size=size)
    return Dataset(
        name="imagefolder",
        images=images["train"],
        labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        classes=found.classes,
        mean=_MEAN,
        std=_STD,
        augment=view,
        image_size=size,
        digest=digest.hexdigest(),
    )
