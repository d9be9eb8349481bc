"""Batches straight from the device: uint8 images stay there, the plan says what happens to them.

Images that are too many for that stay where they are, usually in a memory-mapped file, and go to the device batch by
batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from akd.data.augment import normalise
from akd.data.batch import Batch
from akd.data.dataset import Dataset, TrainData
from akd.data.plan import EpochPlan, training_order
from akd.seeds import generator

if TYPE_CHECKING:
    from akd.world import World


#: Images are kept on a GPU if they take at most this share of the memory that is free there when a run starts.
RESIDENT_SHARE = 0.25


def resident(images: Tensor, device: torch.device) -> bool:
    """True if ``images`` may lie on the device as a whole. On the CPU they always lie where they are: no copy."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= RESIDENT_SHARE * free


def gather(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some images, read on the CPU (from a memory-mapped file: only these) and moved to the device.

    Args:
        images: [n, C, H, W] on the CPU.
        rows: [b] positions on the CPU.
    """
    # From pinned memory the copy does not wait for the steps the GPU still has to do.
    batch = torch.empty(len(rows), *images.shape[1:], dtype=images.dtype, pin_memory=device.type == "cuda")
    torch.index_select(images, 0, rows, out=batch)
    return batch.to(device, non_blocking=True)


def batch_of(height: int, width: int) -> int:
    """Images of a batch that nothing is trained on: 512, fewer where they are larger than 128x128."""
    return max(1, min(512, 512 * 128 * 128 // (height * width)))


def evaluation_batch(dataset: Dataset) -> int:
    """:func:`batch_of` a data set's images."""
    return batch_of(*dataset.size)


def held_out_images(dataset: Dataset, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images as they are, 0..255, with labels; one batch after the other, never all at once."""
    device = torch.device(device)
    for rows in torch.arange(len(dataset.test_labels)).split(evaluation_batch(dataset)):
        yield dataset.plain(gather(dataset.test_images, rows, device)), dataset.test_labels[rows].to(device)


def held_out_batches(dataset: Dataset, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`held_out_images`, normalised."""
    mean, std = (torch.tensor(v, dtype=torch.float64, device=device) for v in (dataset.mean, dataset.std))
    for images, labels in held_out_images(dataset, device):
        yield normalise(images, mean, std), labels


class DeviceLoader:
    """Training batches of one worker.

    Args:
        data: files, rows and standard view.
        batch_size: size of the *global* batch; the last partial batch of an epoch is dropped.
        seed: training order and the step generator.
        plan_seed: augmentation.
        device, dtype: of the images handed out.
        world: which share of each global batch is this worker's.
    """

    def __init__(
        self,
        data: TrainData,
        *,
        batch_size: int,
        seed: int,
        plan_seed: int,
        device: torch.device,
        dtype: torch.dtype,
        world: World,
    ):
        self.data, self.batch_size, self.seed, self.plan_seed = data, batch_size, seed, plan_seed
        self.device, self.dtype, self.world = device, dtype, world
        self.steps = len(data.train) // batch_size
        self.resident = resident(data.dataset.images, device)
        self.images = data.dataset.images.to(device) if self.resident else data.dataset.images
        self.labels = data.dataset.labels.to(device)
        self.mean = torch.tensor(data.dataset.mean, device=device, dtype=torch.float64)
        self.std = torch.tensor(data.dataset.std, device=device, dtype=torch.float64)

    def epoch(self, epoch: int, stage: str = "step") -> Iterator[tuple[Tensor, Batch]]:
        """The epoch's steps: images [b, C, H, W] normalised, and their :class:`Batch`, b this worker's share.

        Args:
            epoch: counted from 1; names images and order.
            stage: names the random numbers of the batches' generator.
        """
        plan = EpochPlan(self.plan_seed, epoch, len(self.labels))
        order = training_order(self.seed, epoch, self.data.train)
        on_device = order.to(self.device)
        columns = [column.to(self.device) for column in self.data.augment.columns(plan)]
        draws = generator(stage, self.seed, epoch, device=self.device)
        low, high = self.world.share(self.batch_size)
        ones = torch.ones(high - low, device=self.device, dtype=self.dtype)
        standard = torch.zeros(high - low, device=self.device, dtype=torch.long)
        for step in range(self.steps):
            share = slice(step * self.batch_size + low, step * self.batch_size + high)
            rows = on_device[share]
            images = self.data.augment(self._gather(rows, order[share]), *(column[rows] for column in columns))
            target = self.labels[rows]
            batch = Batch(rows, target, target, ones, standard, epoch, step, draws, low, self.batch_size)
            yield normalise(images, self.mean, self.std, self.dtype), batch

    def plain(self, rows: Tensor, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are (no augmentation) and labels of ``rows`` of the training file, in large batches."""
        for part in rows.split(batch_size or evaluation_batch(self.data.dataset)):
            there = part.to(self.device)
            images = self.data.dataset.plain(self._gather(there, part))
            yield normalise(images, self.mean, self.std, self.dtype), self.labels[there]

    def _gather(self, there: Tensor, here: Tensor) -> Tensor:
        """Images on the device; ``there`` and ``here`` are the same rows, on the device and on the CPU."""
        return self.images.index_select(0, there) if self.resident else gather(self.images, here, self.device)
