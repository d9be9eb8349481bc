"""What a method sees of one training step besides the networks' outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One worker's share of a global batch of B images.

    Attributes:
        index: [B] position of each image in the training file.
        target: [B] class.
        target2: [B] class of the mix partner; equal to ``target`` without mixing.
        lam: [B] weight of ``target`` against ``target2``, 1 without mixing.
        view: [B] 0 the standard view, 1 the strong one (teacher labels only, no hard label).
        epoch: counted from 1.
        step: step within the epoch, counted from 0.
        generator: source of every other random draw of the step, see :func:`rand`; re-seeded each epoch.
        offset: position of this share's first sample in the global batch.
        total: size of the global batch; 0 means this share is all of it.
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


def rand(batch: Batch, *shape: int, normal: bool = False) -> Tensor:
    """Random numbers [B, *shape] for this share, drawn for the global batch and sliced.

    However many workers share a batch, a sample gets the same numbers.
    Uniform on [0, 1), or standard normal with ``normal``; float32, on the generator's device.
    """
    draw = torch.randn if normal else torch.rand
    local = len(batch.index)
    total = batch.total or local
    values = draw(total, *shape, generator=batch.generator, device=batch.generator.device)
    return values[batch.offset : batch.offset + local]
