"""Batched augmentation on the device: uint8 in, normalised float out, no per-image Python."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """The standard view of a data set.

    Attributes:
        padding: zero pixels added on each side before a crop of the original size is taken; 0 takes no crop.
        flip: mirror half of the images left to right.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, crop: Tensor, flip: Tensor) -> Tensor:
        """Crop and flip a batch.

        Args:
            images: [B, C, H, W], any dtype.
            crop: [B, 2] uniform numbers (``EpochPlan.crop``).
            flip: [B] bool (``EpochPlan.flip``).

        Returns:
            [B, C, H, W] of the same dtype.
        """
        if not self.padding and not self.flip:
            return images
        batch, channels, height, width = images.shape
        p = self.padding
        rows = torch.arange(height, device=images.device).expand(batch, height)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        if self.flip:
            # The crop is taken first and then mirrored, the order of the literature.
            columns = torch.where(flip[:, None], width - 1 - columns, columns)
        if p:
            shift = (crop * (2 * p + 1)).long()
            rows = rows + shift[:, :1]
            columns = columns + shift[:, 1:]
            images = F.pad(images, (p, p, p, p))
        padded_width = width + 2 * p
        # One flat gather along the pixels is several times faster than advanced indexing with three index tensors.
        pixel = (rows[:, :, None] * padded_width + columns[:, None, :]).view(batch, 1, -1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, pixel).view(batch, channels, height, width)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [B, C, H, W] to (x / 255 - mean) / std; ``mean`` and ``std`` [C] in units of the 0..1 range."""
    scale = (1 / (255 * std)).to(dtype).view(1, -1, 1, 1)
    shift = (-mean / std).to(dtype).view(1, -1, 1, 1)
    return torch.addcmul(shift, images.to(dtype), scale)
