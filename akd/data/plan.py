"""EpochPlan: augmentation as a pure function of (plan_seed, epoch, sample).

Every column is drawn on the CPU, from a generator of its own, for the *whole* training file, and indexed by a sample's
position in that file. So a sample meets the same crop in an epoch whatever split, subset, batch size, worker count or
method is used, and one teacher pass over an epoch's view serves every trial of a study. Columns hold plain uniform
numbers: what they mean (how wide a crop, which box) is decided where they are used, and adding a column never changes
another.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from akd.seeds import generator


class EpochPlan:
    """The augmentation table of one epoch.

    Args:
        plan_seed: the study's augmentation seed.
        epoch: counted from 1.
        size: number of images n in the training *file*, not in the split.
        candidate: which of several independent tables of this epoch; 0 is the one that standard views come from.
    """

    def __init__(self, plan_seed: int, epoch: int, size: int, candidate: int = 0):
        self.plan_seed, self.epoch, self.size, self.candidate = plan_seed, epoch, size, candidate

    def other(self, candidate: int) -> EpochPlan:
        """Another table of the same epoch."""
        return EpochPlan(self.plan_seed, self.epoch, self.size, candidate)

    def _generator(self, column: str) -> torch.Generator:
        name = f"{column}#{self.candidate}" if self.candidate else column
        return generator("plan", self.plan_seed, self.epoch, name)

    def uniform(self, column: str, width: int = 1) -> Tensor:
        """The column of this name: uniform on [0, 1), [n, width] float32."""
        return torch.rand(self.size, width, generator=self._generator(column))

    @cached_property
    def crop(self) -> Tensor:
        """[n, 2] vertical and horizontal position of the crop, 0 top or left, 1 (never reached) bottom or right."""
        return self.uniform("crop", 2)

    @cached_property
    def flip(self) -> Tensor:
        """[n] True where the image is mirrored left to right."""
        return self.uniform("flip")[:, 0] < 0.5

    @cached_property
    def mix(self) -> Tensor:
        """[n] uniform number that becomes the mix coefficient (the quantile of its distribution)."""
        return self.uniform("mix")[:, 0]

    @cached_property
    def box(self) -> Tensor:
        """[n, 2] centre of the CutMix or cutout box, vertical and horizontal, as fractions of the image."""
        return self.uniform("box", 2)

    @cached_property
    def strong(self) -> Tensor:
        """[n, 8] parameters of the strong view (operations and their magnitudes)."""
        return self.uniform("strong", 8)

    @cached_property
    def resized_crop(self) -> Tensor:
        """[n, 4] shape, area and vertical and horizontal place of the box that is cut out and resized."""
        return self.uniform("resized_crop", 4)

    def partner(self, indices: Tensor) -> Tensor:
        """Mix partner of each sample of a split: the next one on a random cycle over the split itself.

        Args:
            indices: [m] positions of the split in the training file, m >= 2, any order.

        Returns:
            [n] partner's position for the samples of the split, -1 elsewhere. Nobody is its own partner, and a
            split never mixes with images outside it. The answer does not depend on the order of ``indices``.
        """
        if len(indices) < 2:
            raise ValueError("mixing needs at least two images")
        indices = indices.sort().values
        keys = torch.rand(self.size, generator=self._generator("cycle"), dtype=torch.float64)
        cycle = indices[keys[indices].argsort(stable=True)]
        partner = torch.full((self.size,), -1, dtype=torch.long)
        partner[cycle] = cycle.roll(-1)
        return partner


def training_order(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """[m] the split's positions in the order of training: drawn from (seed, epoch), no part of the augmentation."""
    return indices[torch.randperm(len(indices), generator=generator("order", seed, epoch))]
