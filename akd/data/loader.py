"""Batches straight from the device: uint8 images stay there, the plan says what happens to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from akd.data.augment import normalise
from akd.data.batch import Batch
from akd.data.dataset import TrainData
from akd.data.plan import EpochPlan, training_order
from akd.seeds import generator

if TYPE_CHECKING:
    from akd.world import World


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
        self.images = data.dataset.images.to(device)
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
        order = training_order(self.seed, epoch, self.data.train).to(self.device)
        crop, flip = plan.crop.to(self.device), plan.flip.to(self.device)
        draws = generator(stage, self.seed, epoch, device=self.device)
        low, high = self.world.share(self.batch_size)
        ones = torch.ones(high - low, device=self.device, dtype=self.dtype)
        standard = torch.zeros(high - low, device=self.device, dtype=torch.long)
        for step in range(self.steps):
            rows = order[step * self.batch_size + low : step * self.batch_size + high]
            images = self.data.augment(self.images[rows], crop[rows], flip[rows])
            target = self.labels[rows]
            batch = Batch(rows, target, target, ones, standard, epoch, step, draws, low, self.batch_size)
            yield normalise(images, self.mean, self.std, self.dtype), batch

    def plain(self, rows: Tensor, batch_size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are (no augmentation) and labels of ``rows`` of the training file, in large batches."""
        for part in rows.to(self.device).split(batch_size):
            yield normalise(self.images[part], self.mean, self.std, self.dtype), self.labels[part]
