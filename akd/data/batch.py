"""What a method sees of one training step besides the networks' outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One worker's share of a global batch of B images.

    With two views of each image the rows are the first view of all images, then the second of all, in the same order.
    (Strong views that were picked, see :mod:`akd.data.pick`, are as many, but of the images that were picked.)

    Attributes:
        index: [B] position of each image in the training file.
        target: [B] class.
        target2: [B] class of the mix partner; equal to ``target`` without mixing.
        lam: [B] weight of ``target`` against ``target2``, 1 without mixing; of a mixed image what it holds of its own.
        view: [B] 0 the standard view, 1 the strong one (teacher labels only, no hard label).
        epoch: counted from 1.
        step: step within the epoch, counted from 0.
        generator: source of every other random draw of the step, see :func:`rand`; re-seeded each epoch.
        offset: position of this share's first image in the global batch.
        total: images in the global batch; 0 means this share is all of it.
        views: how many views of each image the rows hold.
        number: of the augmentation table the images were made from, counted from 1; 0 says nothing.
        candidate: [B] which strong view of the image each row is, -1 for the standard one; ``None``: all are standard.
    """

    index: Tensor  # type: ignore[assignment]  # the design's name; hides tuple.index, which nobody needs here
    target: Tensor
    target2: Tensor
    lam: Tensor
    view: Tensor
    epoch: int
    step: int
    generator: torch.Generator
    offset: int = 0
    total: int = 0
    views: int = 1
    number: int = 0
    candidate: Tensor | None = None

    @property
    def images(self) -> int:
        """Images in this share, each counted once however many views there are."""
        return len(self.index) // self.views

    def each_column(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``change`` applied to every tensor."""
        return self._replace(
            index=change(self.index),
            target=change(self.target),
            target2=change(self.target2),
            lam=change(self.lam),
            view=change(self.view),
            candidate=None if self.candidate is None else change(self.candidate),
        )


def rand(batch: Batch, *shape: int, normal: bool = False) -> Tensor:
    """Random numbers [rows, *shape] for this share, drawn for the global batch and sliced.

    However many workers share a batch, a sample gets the same numbers.
    Uniform on [0, 1), or standard normal with ``normal``; float32, on the generator's device.
    """
    draw = torch.randn if normal else torch.rand
    local = batch.images
    total = batch.total or local
    values = draw(batch.views * total, *shape, generator=batch.generator, device=batch.generator.device)
    mine = values.unflatten(0, (batch.views, total))[:, batch.offset : batch.offset + local]
    return mine.flatten(0, 1)
