"""Batched augmentation on the device: uint8 in, normalised float out, no per-image Python.

A standard view is a frozen object with ``columns(plan)``, which gives what an epoch draws for every image, and a call
that takes images and their rows of these columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.plan import EpochPlan


def centre(images: Tensor, size: int | None) -> Tensor:
    """The middle of square images, as networks meet it in evaluation.

    That is the central square of 7/8 of the side, but no less than ``size``, resampled where it is larger: of images
    stored at 256 the central 224 pixels as they are, which is the test view of the ImageNet literature.

    Args:
        images: [B, C, S, S], any dtype.
        size: side of the answer, at most S; ``None`` leaves the images alone.

    Returns:
        [B, C, size, size]; of the same dtype, or float32 where pixels had to be resampled.
    """
    stored = images.shape[-1]
    if size is None or size == stored:
        return images
    side = max(size, round(stored * 7 / 8))
    first = (stored - side) // 2
    images = images[:, :, first : first + side, first : first + side]
    if side == size:
        return images
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Augment:
    """The standard view of a data set.

    Attributes:
        padding: zero pixels added on each side before a crop of the original size is taken; 0 takes no crop.
        flip: mirror half of the images left to right.
        size: side of the :func:`centre` that is taken before anything else; ``None`` takes the images as they are.
    """

    padding: int = 0
    flip: bool = False
    size: int | None = None

    @property
    def identity(self) -> list[object]:
        """What of this view decides what a network learns; the size of the images is a fact of the data set."""
        return [self.padding, self.flip]

    def columns(self, plan: EpochPlan) -> tuple[Tensor, Tensor]:
        """An epoch's arguments of :meth:`__call__`, a row for every image of the training file."""
        return plan.crop, plan.flip

    def __call__(self, images: Tensor, crop: Tensor, flip: Tensor) -> Tensor:
        """Crop and flip a batch.

        Args:
            images: [B, C, H, W], any dtype.
            crop: [B, 2] uniform numbers (``EpochPlan.crop``).
            flip: [B] bool (``EpochPlan.flip``).

        Returns:
            [B, C, H, W] of the same dtype (see :func:`centre` for the exception).
        """
        images = centre(images, self.size)
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


@dataclass(frozen=True)
class ResizedCrop:
    """A random box of each image, resized: the standard view of the ImageNet literature ("inception crop").

    Area and shape are distributed as by torchvision's RandomResizedCrop on square images, which draws a share of the
    area (uniform on ``scale``..1) and a ratio of the sides (log-uniform on 1/``ratio``..``ratio``) until the box fits.
    A plan has no room for drawing again, so the accepted pairs are drawn directly: the shape from its marginal
    distribution, then the area from what fits this shape. Pixels are interpolated bilinearly without a low-pass
    filter, which is what a box little larger than ``size``, or smaller, needs.

    Attributes:
        stored: side of the images handed in.
        size: side of the images handed out.
        flip: mirror half of the images left to right.
        scale: smallest share of the area.
        ratio: longest side over shortest side at most.
    """

    stored: int
    size: int
    flip: bool = True
    scale: float = 0.08
    ratio: float = 4 / 3

    @property
    def identity(self) -> list[object]:
        """What of this view decides what a network learns; the size of the images is a fact of the data set."""
        return ["resized_crop", self.flip, self.scale, self.ratio]

    def columns(self, plan: EpochPlan) -> tuple[Tensor, Tensor]:
        """An epoch's arguments of :meth:`__call__`, a row for every image of the training file."""
        # On the CPU for all rows at once: a box must not depend on how a device rounds.
        return self.boxes(plan.resized_crop), plan.flip

    def boxes(self, draws: Tensor) -> Tensor:
        """Uniform numbers [n, 4] (``EpochPlan.resized_crop``) to boxes [n, 4]: top, left, height, width in pixels."""
        shape, area, *place = draws.double().unbind(1)
        # With x = |log(width / height)| a box fits up to the area exp(-x), so x has the density exp(-x) - scale on
        # 0..log(ratio), and the integral below for its distribution function. That is nearly straight: Newton's
        # method needs four steps for all the digits there are.
        longest = math.log(self.ratio)
        quantile = (2 * shape - 1).abs() * (1 - math.exp(-longest) - self.scale * longest)
        x = (2 * shape - 1).abs() * longest
        for _ in range(4):
            x = x - (1 - (-x).exp() - self.scale * x - quantile) / ((-x).exp() - self.scale)
        share = self.scale + area * ((-x).exp() - self.scale)
        x = torch.where(shape < 0.5, -x, x)
        sides = torch.stack([(share * (-x).exp()).sqrt(), (share * x.exp()).sqrt()], 1)
        sides = (self.stored * sides).round().clamp(1, self.stored)
        corner = (torch.stack(place, 1) * (self.stored - sides + 1)).floor()
        return torch.cat([corner, sides], 1).float()

    def __call__(self, images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
        """Cut out, resize and mirror a batch.

        Args:
            images: [B, C, stored, stored], any dtype.
            box: [B, 4] top, left, height, width in whole pixels.
            flip: [B] bool (``EpochPlan.flip``).

        Returns:
            [B, C, size, size] float32 in the units of ``images``.
        """
        at = (torch.arange(self.size, device=images.device) + 0.5) / self.size

        def sampled(first: Tensor, length: Tensor) -> Tensor:
            """[B, size] pixel coordinates; those beyond the box's outermost pixels stay on them."""
            return first[:, None] + (at * length[:, None] - 0.5).clamp(min=0).minimum(length[:, None] - 1)

        rows, columns = sampled(box[:, 0], box[:, 2]), sampled(box[:, 1], box[:, 3])
        if self.flip:
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), 3)
        grid = (2 * grid + 1) / self.stored - 1  # pixels to grid_sample's -1..1 from edge to edge
        return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


View = Augment | ResizedCrop


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, C, H, W] of 0..255 to (x / 255 - mean) / std; ``mean`` and ``std`` [C] in units of the 0..1 range."""
    scale = (1 / (255 * std)).to(dtype).view(1, -1, 1, 1)
    shift = (-mean / std).to(dtype).view(1, -1, 1, 1)
    return torch.addcmul(shift, images.to(dtype), scale)
