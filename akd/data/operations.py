"""The image operations of AutoAugment and RandAugment, each image its own, without a loop over images.

Operations and magnitudes are those of Cubuk et al. 2019 (arXiv:1805.09501, table 6) in torchvision's arithmetic: bytes
in, bytes out, nearest neighbour, black outside. Which image gets which operation is known on the CPU, so the images
are sorted by kind of operation there and every kind works on its own images only, in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: What an image can be given; the place in this tuple is the operation's number.
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "invert",
)
_CODE = {name: code for code, name in enumerate(OPERATIONS)}
#: Operations whose magnitude points either way.
SIGNED = torch.tensor([1 <= code <= _CODE["sharpness"] for code in range(len(OPERATIONS))])


def magnitudes(bins: int, height: int, width: int) -> Tensor:
    """What each operation does at each of ``bins`` strengths, without sign: [operations, bins] float64.

    Shear as a tangent, translation in whole pixels, rotation in degrees, brightness, colour, contrast and sharpness as
    the distance of the factor from 1, posterize in bits kept, solarize as the threshold of inversion.
    """
    strength = torch.linspace(0, 1, bins, dtype=torch.float64)
    rows = {"shear_x": 0.3 * strength, "shear_y": 0.3 * strength, "rotate": 30 * strength}
    rows |= {
        "translate_x": (150 / 331 * width * strength).floor(),
        "translate_y": (150 / 331 * height * strength).floor(),
    }
    rows |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.9 * strength)
    rows |= {"posterize": 8 - (4 * strength).round(), "solarize": 255 * (1 - strength)}
    return torch.stack([rows.get(name, torch.zeros_like(strength)) for name in OPERATIONS])


def ship(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on the device; from pinned memory the copy does not wait for the steps a GPU has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def apply_each(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """To each image its operation.

    Args:
        images: [B, C, H, W] uint8, C 1 or 3.
        operation: [B] numbers of :data:`OPERATIONS`, on the CPU.
        magnitude: [B] float64 in the units of :func:`magnitudes`, with its sign, on the CPU.

    Returns:
        [B, C, H, W] uint8.
    """
    family = _FAMILY[operation]
    order = family.argsort(stable=True)
    counts = family.bincount(minlength=len(_FAMILIES)).tolist()  # of a CPU tensor: nothing waits
    there = ship(order, images.device)
    parts = images.index_select(0, there).split(counts)
    codes, amounts = operation[order].split(counts), magnitude[order].split(counts)
    done = [f(p, c, m) for f, p, c, m in zip(_FAMILIES, parts, codes, amounts, strict=True) if len(p)]
    return torch.empty_like(images).index_copy_(0, there, torch.cat(done))


def _same(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    return images


def _geometry(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Shears about the upper left corner, translations, rotations about the centre (anti-clockwise)."""
    batch, channels, height, width = images.shape
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)

    def of(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(operation == _CODE[name], value, otherwise)

    angle = magnitude.deg2rad()
    cos, sin = of("rotate", angle.cos(), one), of("rotate", angle.sin(), zero)
    # Where a pixel's colour comes from: x' = a x + b y + c, y' = d x + e y + f, in pixels from the upper left corner.
    b, d = of("shear_x", magnitude, -sin), of("shear_y", magnitude, sin)
    c = of("translate_x", -magnitude, width / 2 * (1 - cos) + height / 2 * sin)
    f = of("translate_y", -magnitude, height / 2 * (1 - cos) - width / 2 * sin)
    table = ship(torch.stack([cos, b, c, d, cos, f], 1), images.device)
    a, b, c, d, e, f = table.view(batch, 6, 1, 1).unbind(1)
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = (torch.arange(height, device=images.device, dtype=torch.float64) + 0.5)[:, None]
    column, row = (a * x + b * y + c - 0.5).round(), (d * x + e * y + f - 0.5).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().view(batch, 1, -1)
    moved = images.flatten(2).gather(2, pixel.expand(-1, channels, -1)).view_as(images)
    return torch.where(inside[:, None], moved, 0)


def _grey(images: Tensor) -> Tensor:
    """[B, 1, H, W] luminance in whole numbers."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]


def _blurred(images: Tensor) -> Tensor:
    """3x3 means in which the middle counts five times; the outermost pixels stay as they are."""
    channels, height, width = images.shape[1:]
    if height < 3 or width < 3:
        return images
    kernel = torch.full((3, 3), 1 / 13, device=images.device)
    kernel[1, 1] = 5 / 13
    inner = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels).round()
    out = images.clone()
    out[..., 1:-1, 1:-1] = inner
    return out


def _blend(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """factor * image + (1 - factor) * what is left of it without brightness, colour, contrast or sharpness."""
    wide = images.float()
    grey = _grey(wide)
    code = ship(operation, images.device).view(-1, 1, 1, 1)
    other = torch.where(code == _CODE["color"], grey, torch.zeros_like(wide))
    other = torch.where(code == _CODE["contrast"], grey.mean((1, 2, 3), keepdim=True), other)
    other = torch.where(code == _CODE["sharpness"], _blurred(wide), other)
    mine, its = (ship(v.float(), images.device).view(-1, 1, 1, 1) for v in (1 + magnitude, -magnitude))
    # The fraction is cut off. The small addition keeps rounding errors out of that: 1.9 * 100 is 190 on every device.
    return (wide * mine + other * its + 1e-3).clamp(0, 255).to(torch.uint8)


def _levels(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Posterize keeps the highest bits; solarize inverts from a threshold on; invert inverts all."""
    bits = torch.where(operation == _CODE["posterize"], magnitude, 8)
    mask = ship((256 - 2 ** (8 - bits)).to(torch.uint8), images.device).view(-1, 1, 1, 1)
    threshold = torch.where(operation == _CODE["posterize"], 256, magnitude)  # invert has magnitude 0
    threshold = ship(threshold.float(), images.device).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images & mask)


def _stretch(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Autocontrast and equalize: both spread the values of each channel over 0..255."""
    from torchvision.transforms.v2.functional import equalize  # it takes seconds to import, and few runs need it

    wide = images.int()
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    stretched = (wide - low) * 255 // (high - low).clamp(min=1)  # whole numbers: exact on every device
    contrast = torch.where(low == high, wide, stretched).to(torch.uint8)
    auto = ship(operation == _CODE["autocontrast"], images.device).view(-1, 1, 1, 1)
    return torch.where(auto, contrast, equalize(images))


_FAMILIES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (_same, _geometry, _blend, _levels, _stretch)
_FAMILY = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 3])
