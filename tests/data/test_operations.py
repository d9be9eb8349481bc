"""Each operation against torchvision's, one image at a time, and against arithmetic written out by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import AutoAugment, RandAugment
from torchvision.transforms import functional as published

from akd.data.operations import OPERATIONS, SIGNED, apply_each, magnitudes

CODE = {name: number for number, name in enumerate(OPERATIONS)}


def pictures(count: int = 6, channels: int = 3, height: int = 20, width: int = 24, seed: int = 0) -> Tensor:
    """Smooth pictures with some noise, a flat one, a dark one and one of two levels."""
    draw = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, channels, 5, 6, generator=draw)
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")
    images = (255 * smooth + 6 * torch.randn(smooth.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    images[1] = 77
    images[2] = images[2] // 4
    images[3] = torch.where(images[3] > 128, 200, 10).to(torch.uint8)
    return images


def one(name: str, image: Tensor, magnitude: float) -> Tensor:
    got = apply_each(image[None], torch.tensor([CODE[name]]), torch.tensor([magnitude], dtype=torch.float64))
    assert got.dtype == torch.uint8
    return got[0]


def torchvision(name: str, image: Tensor, magnitude: float) -> Tensor:
    """What torchvision's own AutoAugment does, operation by operation."""
    affine: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    slant = math.degrees(math.atan(magnitude))
    known: dict[str, Any] = {
        "identity": lambda: image,
        "shear_x": lambda: published.affine(image, **affine | {"shear": [slant, 0.0]}, center=[0, 0]),
        "shear_y": lambda: published.affine(image, **affine | {"shear": [0.0, slant]}, center=[0, 0]),
        "translate_x": lambda: published.affine(image, **affine | {"translate": [int(magnitude), 0]}),
        "translate_y": lambda: published.affine(image, **affine | {"translate": [0, int(magnitude)]}),
        "rotate": lambda: published.rotate(image, magnitude),
        "brightness": lambda: published.adjust_brightness(image, 1 + magnitude),
        "color": lambda: published.adjust_saturation(image, 1 + magnitude),
        "contrast": lambda: published.adjust_contrast(image, 1 + magnitude),
        "sharpness": lambda: published.adjust_sharpness(image, 1 + magnitude),
        "posterize": lambda: published.posterize(image, int(magnitude)),
        "solarize": lambda: published.solarize(image, magnitude),
        "autocontrast": lambda: published.autocontrast(image),
        "equalize": lambda: published.equalize(image),
        "invert": lambda: published.invert(image),
    }
    return known[name]()


def strengths(name: str) -> list[float]:
    table = magnitudes(31, 20, 24)[CODE[name]].unique().tolist()
    chosen = [table[i] for i in sorted({0, len(table) // 3, len(table) // 2, len(table) - 1})]
    return chosen + [-m for m in chosen if m] if SIGNED[CODE[name]] else chosen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_as_torchvision(name: str, channels: int) -> None:
    for image in pictures(channels=channels):
        for magnitude in strengths(name):
            got, want = one(name, image, magnitude), torchvision(name, image, magnitude)
            if name in ("shear_x", "shear_y", "rotate"):
                # Of a pixel that falls half-way between two others rounding decides, which differs in float32.
                assert (got != want).double().mean() < 0.03, magnitude
            elif name in ("brightness", "color", "contrast", "sharpness", "autocontrast"):
                # The fraction is cut off, so torchvision's rounding errors can cost it a whole level; exactly: below.
                assert (got.int() - want.int()).abs().max() <= 1, magnitude
            else:
                assert torch.equal(got, want), magnitude


@pytest.mark.parametrize("name", OPERATIONS)
def test_changes_the_picture_unless_it_says_nothing(name: str) -> None:
    image = pictures()[0]
    strongest = magnitudes(31, 20, 24)[CODE[name], -1].item()
    assert torch.equal(one(name, image, strongest), image) == (name == "identity")
    if SIGNED[CODE[name]]:
        assert not torch.equal(one(name, image, strongest), one(name, image, -strongest))
        assert torch.equal(one(name, image, 0.0), image)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_pixel_by_pixel(name: str, sign: int) -> None:
    """Straight from the definition: where does the colour of each pixel come from?"""
    image = pictures()[0]
    _, height, width = image.shape
    magnitude = sign * {"translate_x": 3.0, "translate_y": 4.0, "rotate": 13.0}.get(name, 0.17)
    want = torch.zeros_like(image)
    turn = math.radians(magnitude)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            dx, dy = x - width / 2, y - height / 2
            x, y = {
                "shear_x": (x + magnitude * y, y),
                "shear_y": (x, y + magnitude * x),
                "translate_x": (x - magnitude, y),
                "translate_y": (x, y - magnitude),
                "rotate": (
                    width / 2 + math.cos(turn) * dx - math.sin(turn) * dy,
                    height / 2 + math.sin(turn) * dx + math.cos(turn) * dy,
                ),
            }[name]
            source_x, source_y = round(x - 0.5), round(y - 0.5)
            if 0 <= source_x < width and 0 <= source_y < height:
                want[:, row, column] = image[:, source_y, source_x]
    assert torch.equal(one(name, image, magnitude), want)


@pytest.mark.parametrize("step", [-30, -11, 4, 10, 30])
def test_blends_in_exact_fractions(step: int) -> None:
    """factor * pixel + (1 - factor) * other, fraction cut off, without a rounding error."""
    image, factor = pictures()[0], 1 + Fraction(step, 30) * Fraction(9, 10)
    values = image.tolist()
    done = {n: one(n, image, float(factor - 1)).tolist() for n in ("brightness", "color", "sharpness")}
    for row in range(1, 19, 3):
        for column in range(1, 23, 5):
            red, green, blue = (values[c][row][column] for c in range(3))
            grey = (2989 * red + 5870 * green + 1140 * blue) // 10000
            for c, pixel in enumerate((red, green, blue)):
                near = [values[c][y][x] for y in (row - 1, row, row + 1) for x in (column - 1, column, column + 1)]
                blurred = round(Fraction(sum(near) + 4 * pixel, 13))
                for name, other in (("brightness", 0), ("color", grey), ("sharpness", blurred)):
                    exact = math.floor(factor * pixel + (1 - factor) * other)
                    assert done[name][c][row][column] == min(255, max(0, exact)), name


def test_autocontrast_in_whole_numbers() -> None:
    for image in pictures():
        got = one("autocontrast", image, 0.0)
        for c in range(3):
            low, high = int(image[c].min()), int(image[c].max())
            for pixel, stretched in zip(image[c].flatten().tolist(), got[c].flatten().tolist(), strict=True):
                assert stretched == (pixel if low == high else (pixel - low) * 255 // (high - low))


def test_a_batch_is_its_images_one_by_one() -> None:
    draw = torch.Generator().manual_seed(4)
    images = pictures(count=60, seed=3)
    operation = torch.arange(60) % len(OPERATIONS)
    operation = operation[torch.randperm(60, generator=draw)]
    table = magnitudes(10, 20, 24)[operation]
    magnitude = table.gather(1, torch.randint(10, (60, 1), generator=draw))[:, 0]
    magnitude = torch.where(SIGNED[operation] & (torch.rand(60, generator=draw) < 0.5), -magnitude, magnitude)
    kept = images.clone()
    got = apply_each(images, operation, magnitude)
    assert torch.equal(images, kept)
    for i in range(60):
        assert torch.equal(got[i], one(OPERATIONS[operation[i]], images[i], magnitude[i].item())), i


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(OPERATIONS) - 1), min_size=1, max_size=9), st.integers(0, 99))
def test_order_of_the_batch_does_not_matter(codes: list[int], seed: int) -> None:
    images = pictures(count=max(4, len(codes)), height=8, width=9, seed=seed)[: len(codes)]
    operation = torch.tensor(codes)
    magnitude = magnitudes(10, 8, 9)[operation, seed % 10]
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    whole = apply_each(images, operation, magnitude)
    assert torch.equal(apply_each(images[order], operation[order], magnitude[order]), whole[order])


@pytest.mark.parametrize("bins", [10, 31])
def test_magnitudes_are_torchvisions(bins: int) -> None:
    for space in (AutoAugment()._augmentation_space(bins, (32, 48)), RandAugment()._augmentation_space(bins, (32, 48))):
        for name, (values, signed) in space.items():
            code = next(c for spelled, c in CODE.items() if spelled.replace("_", "") == name.lower())
            assert bool(SIGNED[code]) == signed
            mine = magnitudes(bins, 32, 48)[code]
            want = values.double() if values.ndim else torch.zeros(bins, dtype=torch.float64)
            if name.startswith("Translate"):
                want = want.trunc()  # torchvision cuts the fraction off when it translates
            assert torch.allclose(mine, want, atol=1e-4), name


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 2)])
def test_tiny_images(size: tuple[int, int]) -> None:
    images = torch.arange(3 * size[0] * size[1], dtype=torch.uint8).view(1, 3, *size)
    for name in OPERATIONS:
        got = one(name, images[0], magnitudes(31, *size)[CODE[name], 15].item())
        assert got.shape == images[0].shape
