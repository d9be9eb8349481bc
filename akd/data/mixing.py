"""Mixing and cutting: boxes and coefficients from uniform numbers on the CPU, pixels wherever the images are."""

from __future__ import annotations

import torch
from torch import Tensor

from akd.data.operations import ship


def beta_quantile(uniform: Tensor, alpha: float) -> Tensor:
    """Uniform numbers [...] to numbers distributed as Beta(alpha, alpha), float64; alpha 1 leaves them as they are."""
    if alpha == 1:
        return uniform.double()
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().numpy()))


def boxes(centre: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """Boxes around whole-pixel centres, cut off at the image's edge.

    Args:
        centre: [n, 2] uniform numbers, vertical and horizontal (``EpochPlan.box``).
        sides: [n, 2] whole pixels, vertical and horizontal.

    Returns:
        [n, 4] top, left, bottom, right in whole pixels, the last two outside the box; int64.
    """
    size = torch.tensor([height, width])
    first = (centre.double() * size).long() - sides.long() // 2
    corner = torch.cat([first, first + sides.long()], 1)
    return torch.minimum(corner.clamp(min=0), size.repeat(2))


def area(box: Tensor) -> Tensor:
    """[n] pixels of boxes [n, 4]."""
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])


def inside(box: Tensor, images: Tensor) -> Tensor:
    """[B, 1, H, W] True within each image's box [B, 4]; the boxes are on the CPU, the answer with the images."""
    height, width = images.shape[2:]
    top, left, bottom, right = ship(box, images.device).view(-1, 4, 1, 1).unbind(1)
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    return ((row >= top) & (row < bottom) & (column >= left) & (column < right))[:, None]


def cutmix(images: Tensor, others: Tensor, box: Tensor) -> Tensor:
    """``images`` [B, C, H, W] with the pixels of ``others`` inside ``box`` [B, 4]."""
    return torch.where(inside(box, images), others, images)


def cutout(images: Tensor, box: Tensor, fill: Tensor) -> Tensor:
    """``images`` [B, C, H, W] with the colour ``fill`` [C] inside ``box`` [B, 4]; in the dtype of ``fill``."""
    return torch.where(inside(box, images), fill.view(1, -1, 1, 1), images.to(fill.dtype))


def mixup(images: Tensor, others: Tensor, lam: Tensor) -> Tensor:
    """lam * images + (1 - lam) * others, [B, C, H, W] with ``lam`` [B] on the same device; in the dtype of ``lam``."""
    share = lam.view(-1, 1, 1, 1)
    return share * images + (1 - share) * others
