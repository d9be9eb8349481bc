"""The loop everybody uses, as the benchmarks' baseline, and the data that it and akd both read.

torchvision's CIFAR100 and a DataLoader that crops, flips and normalises image by image, a teacher that runs on every
batch, float32, SGD with Nesterov momentum, meters that read loss and accuracy of every step: the training script that
distillation repositories share. Networks are akd's, so that only the loop differs.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR100

from akd.data.augment import Augment
from akd.data.dataset import DataConfig, Dataset, load

BATCH, CLASSES = 64, 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
#: Teacher and student.
PAIRS = (("resnet32x4", "resnet8x4"), ("wrn_40_2", "wrn_16_2"), ("ResNet50", "MobileNetV2"))
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
TEMPERATURE, SOFT, HARD = 4.0, 0.9, 0.1  # akd's defaults of kd


def data_folder(given: str | None) -> Path | None:
    """The folder that holds CIFAR-100, given or ``$AKD_DATA``; without one there is a stand-in."""
    found = given or os.environ.get("AKD_DATA")
    return Path(found) if found else None


def describe_data(folder: Path | None) -> str:
    """What the figures were measured on."""
    return "CIFAR-100" if folder else "a stand-in for CIFAR-100: random images of its shape (--data-dir or $AKD_DATA)"


def random_files(count: int = 50_000) -> tuple[np.ndarray, list[int]]:
    """Images [n, 32, 32, 3] and labels as torchvision holds them, of noise."""
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    return images, draw.integers(CLASSES, size=count).tolist()


def torchvision_dataset(folder: Path | None, augment: bool) -> CIFAR100:
    """The training file with the usual transforms."""
    change = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    transform = transforms.Compose([*change, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    if folder is not None:
        root = folder if (folder / CIFAR100.base_folder).is_dir() else folder / "cifar100"
        return CIFAR100(str(root), train=True, transform=transform)
    found: CIFAR100 = CIFAR100.__new__(CIFAR100)  # its files are checked by checksum, noise has none
    found.data, found.targets = random_files()
    found.transform, found.target_transform = transform, None
    return found


def stand_in(folder: Path) -> Dataset:
    """The stand-in as a data set of akd: ``--data baseline:stand_in``."""
    images, labels = random_files()
    found = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets, names = torch.tensor(labels), tuple(map(str, range(CLASSES)))
    view = Augment(padding=4, flip=True)
    return Dataset("stand-in", found, targets, found[:1000], targets[:1000], names, MEAN, STD, augment=view)


def akd_dataset(folder: Path | None) -> Dataset:
    """The same images as akd reads them."""
    if folder is None:
        return stand_in(Path())
    return load(DataConfig(name="cifar100", dir=str(folder)))


@torch.no_grad()
def calibrated(net: nn.Module, images: Tensor) -> nn.Module:
    """An untrained network whose batch normalisation has seen images, so that its outputs are of a usual size."""
    net.train()
    for _ in range(20):
        net(images)
    return net.eval()


class Meter:
    """A running mean, as training scripts keep it."""

    def __init__(self) -> None:
        self.sum = self.count = 0.0

    def update(self, value: float, count: int) -> None:
        self.sum += value * count
        self.count += count

    @property
    def mean(self) -> float:
        return self.sum / max(1.0, self.count)


def hits(logits: Tensor, target: Tensor) -> float:
    """Top-1 accuracy of a batch."""
    return (logits.argmax(1) == target).float().mean().item()


@dataclass
class Loop:
    """A run of the usual script.

    Args:
        student, teacher: networks that give an :class:`akd.models.Output`.
        rows: of the training file to train on.
        val_rows: to measure accuracy on after each epoch.
        folder: of CIFAR-100.
        workers: processes of the DataLoader.
    """

    student: nn.Module
    teacher: nn.Module
    rows: Tensor
    folder: Path | None
    val_rows: Tensor = field(default_factory=lambda: torch.arange(0))
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    nesterov: bool = True
    lr: float = LR

    def __post_init__(self) -> None:
        self.student, self.teacher = self.student.to(self.device), self.teacher.to(self.device)
        more: dict[str, Any] = {"num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        if self.workers:
            more["persistent_workers"] = True
        train = Subset(torchvision_dataset(self.folder, augment=True), self.rows.tolist())
        self.loader = DataLoader(train, batch_size=BATCH, shuffle=True, drop_last=True, **more)
        val = Subset(torchvision_dataset(self.folder, augment=False), self.val_rows.tolist())
        self.val_loader = DataLoader(val, batch_size=BATCH, shuffle=False, **more)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=self.lr, momentum=MOMENTUM, nesterov=self.nesterov, weight_decay=DECAY
        )

    def epoch(self) -> tuple[float, float]:
        """Train on all rows once: mean loss and accuracy."""
        self.student.train()
        self.teacher.eval()
        losses, accuracies = Meter(), Meter()
        for images, target in self.loader:
            images, target = images.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
            logits = self.student(images).logits
            with torch.no_grad():
                theirs = self.teacher(images).logits
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1), F.softmax(theirs / TEMPERATURE, 1), reduction="batchmean"
            )
            loss = HARD * F.cross_entropy(logits, target) + SOFT * TEMPERATURE**2 * soft
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.update(loss.item(), len(target))
            accuracies.update(hits(logits, target), len(target))
        return losses.mean, accuracies.mean

    @torch.no_grad()
    def evaluate(self) -> float:
        """Accuracy on the validation rows."""
        self.student.eval()
        accuracies = Meter()
        for images, target in self.val_loader:
            images, target = images.to(self.device), target.to(self.device)
            accuracies.update(hits(self.student(images).logits, target), len(target))
        return accuracies.mean

    def timed_epoch(self) -> float:
        """Seconds of :meth:`epoch`."""
        began = time.perf_counter()
        self.epoch()
        return time.perf_counter() - began
