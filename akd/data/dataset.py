"""A data set in memory, its splits, and the registry of readers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from akd.data.augment import Augment, ResizedCrop, View, centre
from akd.errors import ExperimentError, reason
from akd.registry import Registry
from akd.seeds import generator
from akd.settings import setting

readers = Registry("data set", "akd.data")

AUGMENTS = ("none", "crop", "crop_flip", "resized_crop")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    The validation split is taken from the training file, stratified by class, and depends only on ``split_seed``,
    ``subset`` and ``validation``: never on a trial.
    """

    name: str = setting("digits", help="a registered data set or module:factory")
    dir: str | None = setting(None, help="folder that holds the files; default $AKD_DATA_DIR or ~/.cache/akd/data")
    subset: int | None = setting(None, low=2, help="use only this many training images, stratified")
    validation: float = setting(0.1, above=0, below=1, help="share of the training images held out for selection")
    split_seed: int = setting(0, low=0, help="seed of subset and validation split")
    augment: str = setting("auto", choices=["auto", *AUGMENTS], help="standard view; auto is the data set's own")
    crop_padding: int | None = setting(None, low=1, high=64, help="zero pixels on each side; default 4, or size / 8")
    image_size: int | None = setting(
        None, low=8, high=1024, when=("name", "imagefolder"), help="side of the images networks see; default 64"
    )
    stored_size: int | None = setting(
        None, low=8, high=2048, when=("name", "imagefolder"), help="side they are kept at; default 8/7 of a size > 64"
    )


@dataclass(frozen=True)
class Dataset:
    """Images as they lie in the files.

    Attributes:
        name: registered name.
        images, labels: training file, uint8 [n, C, H, W] and int64 [n].
        test_images, test_labels: test file, the same.
        classes: class names in the order of the labels.
        mean, std: per channel, in units of the 0..1 range, for normalisation.
        augment: the data set's own standard view.
        image_size: side of the square images networks see, where the files' are larger; ``None`` is as in the files.
        digest: content hash of images and labels, where one is kept, so that large files are not read for it.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: View = field(default_factory=Augment)
    image_size: int | None = None
    digest: str | None = None

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images networks see."""
        height, width = self.images.shape[2:]
        return (height, width) if self.image_size is None else (self.image_size, self.image_size)

    def plain(self, images: Tensor) -> Tensor:
        """Images of the files as networks meet them in evaluation, see :func:`akd.data.augment.centre`."""
        return centre(images, self.image_size)

    @cached_property
    def hash(self) -> str:
        """Content hash of the training file (images and labels)."""
        if self.digest is not None:
            return hashlib.sha256(f"{self.digest} {self.size}".encode()).hexdigest()[:16]
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TrainData:
    """A data set with its rows assigned: what a training run reads.

    Attributes:
        dataset: the files.
        train, val: sorted positions in the training file, int64 [m]; ``val`` may be empty (final training).
        augment: the standard view in force.
    """

    dataset: Dataset
    train: Tensor
    val: Tensor
    augment: View

    @property
    def hash(self) -> str:
        """Content hash of files and split: equal hash, equal training and validation data."""
        digest = hashlib.sha256(self.dataset.hash.encode())
        for rows in (self.train, self.val):
            digest.update(rows.numpy().tobytes() + b"|")
        return digest.hexdigest()[:16]

    def with_validation_joined(self) -> TrainData:
        """Training and validation rows together, nothing held out: the data of final training."""
        return replace(self, train=torch.cat([self.train, self.val]).sort().values, val=self.val[:0])


def stratified(labels: Tensor, rows: Tensor, count: int, *seed: object) -> Tensor:
    """``count`` of ``rows``, classes in proportion (largest remainders), drawn per class; sorted int64 [count].

    Args:
        labels: [n] classes of the whole file.
        rows: [m] positions to choose from.
        count: how many, at most m.
        seed: parts for :func:`akd.seeds.generator`.
    """
    draw = generator("stratified", *seed)
    members = [rows[labels[rows] == c] for c in labels[rows].unique()]
    shares = torch.tensor([len(m) for m in members], dtype=torch.float64) * count / len(rows)
    take = shares.floor().long()
    rest = (shares - take).argsort(descending=True, stable=True)[: count - int(take.sum())]
    take[rest] += 1
    chosen = [m[torch.randperm(len(m), generator=draw)[: int(t)]] for m, t in zip(members, take, strict=True)]
    return torch.cat(chosen).sort().values


def data_dir(config: DataConfig) -> Path:
    """Where the files of file-based data sets are looked for."""
    import os

    return Path(config.dir or os.environ.get("AKD_DATA_DIR") or "~/.cache/akd/data").expanduser().absolute()


def load(config: DataConfig) -> Dataset:
    """The data set named by ``config``; reads files, downloads nothing.

    Raises:
        ExperimentError: unknown name, files missing or damaged.
    """
    options = {name: getattr(config, name) for name in readers.info(config.name).get("options", ())}
    reader = readers.get(config.name, key="data.name")
    if readers.registered(config.name):
        try:
            return reader(data_dir(config), **options)
        except OSError as error:  # no permission, a name longer than the system takes
            place = error.filename or data_dir(config)
            raise ExperimentError(f"cannot be read: {error.strerror}", key="data.dir", value=str(place)) from None
    try:
        found = reader(data_dir(config), **options)
    except ExperimentError:
        raise
    except Exception as error:  # a user's reader may fail in any way
        problem = f"cannot be read: {type(error).__name__}: {reason(error)}"
        raise ExperimentError(problem, key="data", value=config.name) from error
    if not isinstance(found, Dataset):
        problem = f"gives a {type(found).__name__}, not an akd.data.Dataset"
        raise ExperimentError(problem, key="data", value=config.name)
    return found


def _view(config: DataConfig, dataset: Dataset) -> View:
    """The standard view that ``config`` asks for."""
    height, width = dataset.size
    view = dataset.augment
    if config.augment == "resized_crop":
        if height != width:
            raise ExperimentError(
                f"takes square images, these have {height}x{width}", key="data.augment", value=config.augment
            )
        view = ResizedCrop(stored=dataset.images.shape[3], size=width)
    elif config.augment != "auto":
        # The literature's padding: 4 for 32 pixels, 8 for 64.
        padding = 0 if config.augment == "none" else max(4, width // 8)
        view = Augment(padding=padding, flip=config.augment == "crop_flip", size=dataset.image_size)
    if config.crop_padding is None:
        return view
    if isinstance(view, ResizedCrop) or not view.padding:
        why = "takes no crop" if isinstance(view, Augment) else "is resized_crop, which pads nothing"
        raise ExperimentError(
            f"has no effect: the standard view {why}", key="data.crop_padding", value=config.crop_padding
        )
    return replace(view, padding=config.crop_padding)


def split(config: DataConfig, dataset: Dataset) -> TrainData:
    """``dataset`` with its rows assigned as ``config`` says.

    Raises:
        ExperimentError: the subset is larger than the file, or a split would lack whole classes' worth of images.
    """
    n = len(dataset.labels)
    rows = torch.arange(n)
    if config.subset is not None:
        if config.subset > n:
            raise ExperimentError(
                f"must be at most {n}, the number of training images", key="data.subset", value=config.subset
            )
        rows = stratified(dataset.labels, rows, config.subset, "subset", config.split_seed)
    count = round(len(rows) * config.validation)
    if count < 1 or count >= len(rows):
        raise ExperimentError(
            f"leaves {count} of {len(rows)} images for validation; both parts need some",
            key="data.validation",
            value=config.validation,
        )
    val = stratified(dataset.labels, rows, count, "validation", config.split_seed)
    train = rows[~torch.isin(rows, val)]
    return TrainData(dataset, train, val, _view(config, dataset))
