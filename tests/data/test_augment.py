"""Batched crop and flip against one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from akd.data import EpochPlan
from akd.data.augment import Augment, ResizedCrop, centre, normalise


def slow(image: Tensor, crop: Tensor, flip: bool, padding: int) -> Tensor:
    """Pad, crop, then mirror, one pixel at a time."""
    channels, height, width = image.shape
    top, left = (int(float(c) * (2 * padding + 1)) for c in crop)
    out = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + top - padding, (width - 1 - x if flip else x) + left - padding
                if 0 <= row < height and 0 <= column < width:
                    out[c, y, x] = image[c, row, column]
    return out


def picture(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (n, channels, height, width), generator=draw, dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(
    padding=st.integers(0, 4),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    seed=st.integers(0, 10**6),
)
def test_against_one_pixel_at_a_time(
    padding: int, flip: bool, channels: int, height: int, width: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    images, crop = picture(4, channels, height, width, seed), torch.rand(4, 2, generator=draw)
    flips = torch.tensor([True, False, True, False])
    got = Augment(padding=padding, flip=flip)(images, crop, flips)
    assert got.dtype == torch.uint8
    for i in range(4):
        assert torch.equal(got[i], slow(images[i], crop[i], flip and bool(flips[i]), padding))


def test_every_offset_is_reached_and_none_beyond() -> None:
    images = picture(1, 1, 3, 3).expand(5, -1, -1, -1)
    below_one = 1 - 2**-24  # the largest number a uniform float32 column can hold
    crop = torch.tensor([[0.0, 0.0], [0.34, 0.0], [0.5, 0.5], [0.0, below_one], [below_one, below_one]])
    got = Augment(padding=1)(images, crop, torch.zeros(5, dtype=torch.bool))
    one = images[0, 0]
    assert torch.equal(got[0, 0, 1:, 1:], one[:2, :2])  # far top left: the image moves down and right
    assert (got[0, 0, 0] == 0).all()
    assert torch.equal(got[1, 0, :, 1:], one[:, :2])
    assert torch.equal(got[2, 0], one)
    assert torch.equal(got[3, 0, 1:, :2], one[:2, 1:])
    assert torch.equal(got[4, 0, :2, :2], one[1:, 1:])


def test_nothing_to_do_gives_the_images_as_they_are() -> None:
    images = picture(2, 3, 4, 4)
    assert Augment()(images, torch.rand(2, 2), torch.ones(2, dtype=torch.bool)) is images


def test_flip_alone() -> None:
    images = picture(2, 3, 4, 5)
    got = Augment(flip=True)(images, torch.rand(2, 2), torch.tensor([True, False]))
    assert torch.equal(got[0], images[0].flip(-1))
    assert torch.equal(got[1], images[1])


def test_the_images_given_are_not_written_to() -> None:
    images = picture(3, 1, 4, 4)
    before = images.clone()
    Augment(padding=2, flip=True)(images, torch.rand(3, 2), torch.ones(3, dtype=torch.bool))
    assert torch.equal(images, before)


def slow_box(draws: list[float], stored: int, scale: float, ratio: float) -> list[int]:
    """Top, left, height, width from four numbers of 0..1: the shape's quantile by bisection, then the rest."""
    shape, area, top, left = draws

    def below(x: float) -> float:  # share of boxes with |log(width / height)| < x, up to a factor
        return 1 - math.exp(-x) - scale * x

    low, high = 0.0, math.log(ratio)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < abs(2 * shape - 1) * below(math.log(ratio)) else (low, middle)
    share = scale + area * (math.exp(-low) - scale)
    aspect = math.exp(low if shape >= 0.5 else -low)
    width = min(stored, max(1, round(stored * math.sqrt(share * aspect))))
    height = min(stored, max(1, round(stored * math.sqrt(share / aspect))))
    return [int(top * (stored - height + 1)), int(left * (stored - width + 1)), height, width]


def slow_resized_crop(image: Tensor, box: list[int], flip: bool, size: int) -> Tensor:
    """Cut out, resize and mirror, one pixel at a time, in float64."""
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width].double()
    out = torch.zeros(len(image), size, size, dtype=torch.float64)
    for y in range(size):
        for x in range(size):
            row = min(max((y + 0.5) * height / size - 0.5, 0), height - 1)
            column = min(max((x + 0.5) * width / size - 0.5, 0), width - 1)
            r, c = int(row), int(column)
            dr, dc = row - r, column - c
            below, right = min(r + 1, height - 1), min(c + 1, width - 1)
            upper = (1 - dc) * part[:, r, c] + dc * part[:, r, right]
            lower = (1 - dc) * part[:, below, c] + dc * part[:, below, right]
            out[:, y, size - 1 - x if flip else x] = (1 - dr) * upper + dr * lower
    return out


class TestResizedCrop:
    @settings(max_examples=25, deadline=None)
    @given(
        stored=st.integers(8, 20),
        size=st.integers(4, 20),
        channels=st.sampled_from([1, 3]),
        flip=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_against_one_pixel_at_a_time(self, stored: int, size: int, channels: int, flip: bool, seed: int) -> None:
        view = ResizedCrop(stored=stored, size=size, flip=flip)
        images = picture(4, channels, stored, stored, seed)
        draws = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed))
        flips = torch.tensor([True, False, True, False])
        boxes = view.boxes(draws)
        got = view(images, boxes, flips)
        assert got.shape == (4, channels, size, size)
        for i in range(4):
            box = slow_box(draws[i].tolist(), stored, view.scale, view.ratio)
            assert boxes[i].tolist() == box
            want = slow_resized_crop(images[i], box, flip and bool(flips[i]), size)
            assert torch.allclose(got[i].double(), want, rtol=0, atol=0.01)

    def test_against_torchvision(self) -> None:
        view = ResizedCrop(stored=40, size=24)
        images = picture(30, 3, 40, 40)
        boxes, flips = view.columns(EpochPlan(0, 1, 30))
        got = view(images, boxes, flips)
        for i, (top, left, height, width) in enumerate(boxes.int().tolist()):
            want = transforms.resized_crop(images[i].double(), top, left, height, width, [24, 24], antialias=False)
            assert torch.allclose(got[i].double(), want.flip(-1) if flips[i] else want, rtol=0, atol=0.01)

    def test_boxes_are_distributed_as_torchvision_draws_them(self) -> None:
        n, side = 6000, 4096  # so large that rounding to pixels does not show
        draw = v2.RandomResizedCrop(side)
        image = torch.empty(1, side, side)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = [draw.make_params([image]) for _ in range(n)]
        want = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).double()
        got = ResizedCrop(stored=side, size=8).boxes(EpochPlan(0, 1, n).resized_crop).double()

        def facts(boxes: Tensor) -> Tensor:
            top, left, height, width = boxes.T
            area, shape = height * width / side**2, (width / height).log()
            return torch.stack([area, shape, shape.abs(), area * shape.abs(), top / side, left / side])

        for a, b in zip(facts(got), facts(want), strict=True):
            both = torch.cat([a, b]).sort().values
            distance = torch.searchsorted(a.sort().values, both) - torch.searchsorted(b.sort().values, both)
            assert distance.abs().max() / n < 1.63 * math.sqrt(2 / n)  # Kolmogorov-Smirnov, 1 in 100

    def test_boxes_stay_inside(self) -> None:
        below_one = 1 - 2**-24
        ends = torch.tensor([0.0, 0.25, 0.5, 0.75, below_one])
        draws = torch.cartesian_prod(ends, ends, ends, ends)
        for stored in (8, 64, 255, 256):
            boxes = ResizedCrop(stored=stored, size=8).boxes(draws)
            assert torch.equal(boxes, boxes.round())
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] >= 1).all()
            assert (boxes[:, :2] + boxes[:, 2:] <= stored).all()
            share = boxes[:, 2] * boxes[:, 3] / stored**2
            assert share.min() < 0.08 + 2 / stored
            assert share.max() > 0.99

    def test_columns_are_pure_and_the_images_are_not_written_to(self) -> None:
        view = ResizedCrop(stored=16, size=8)
        one, two = (view.columns(EpochPlan(5, 3, 40)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not torch.equal(one[0], view.columns(EpochPlan(5, 4, 40))[0])
        images = picture(40, 3, 16, 16)
        before = images.clone()
        whole = view(images, *one)
        assert torch.equal(images, before)
        rows = torch.tensor([7, 3, 31])  # a sample's pixels do not depend on who shares its batch
        assert torch.equal(view(images[rows], one[0][rows], one[1][rows]), whole[rows])

    def test_no_flip(self) -> None:
        images, box = picture(1, 1, 8, 8), torch.tensor([[0.0, 0, 8, 8]])
        got = ResizedCrop(8, 8, flip=False)(images, box, torch.tensor([True]))
        assert torch.allclose(got, images.float(), atol=0.01)
        assert torch.allclose(ResizedCrop(8, 8)(images, box, torch.tensor([True])), images.flip(-1).float(), atol=0.01)


class TestCentre:
    def test_nothing_to_do(self) -> None:
        images = picture(1, 1, 6, 6)
        assert centre(images, None) is images
        assert centre(images, 6) is images

    @pytest.mark.parametrize(("stored", "size", "first"), [(256, 224, 16), (64, 56, 4), (10, 9, 0), (72, 64, 4)])
    def test_cut_out_as_it_is(self, stored: int, size: int, first: int) -> None:
        images = picture(2, 3, stored, stored)
        got = centre(images, size)
        assert got.dtype == torch.uint8
        assert torch.equal(got, images[:, :, first : first + size, first : first + size])

    def test_resampled_where_much_larger(self) -> None:
        images = picture(2, 3, 32, 32)
        want = F.interpolate(images[:, :, 2:30, 2:30].double(), (14, 14), mode="bilinear", antialias=True)
        assert torch.allclose(centre(images, 14).double(), want, atol=1e-3)

    def test_padded_crops_are_taken_from_it(self) -> None:
        images, crop, flip = picture(2, 1, 12, 12), torch.rand(2, 2), torch.tensor([True, False])
        want = Augment(padding=2, flip=True)(centre(images, 8), crop, flip)
        assert torch.equal(Augment(padding=2, flip=True, size=8)(images, crop, flip), want)


class TestNormalise:
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
    def test_against_the_formula(self, dtype: torch.dtype, tolerance: float) -> None:
        images = picture(2, 3, 4, 4)
        got = normalise(images, self.mean.double(), self.std.double(), dtype)
        assert got.dtype == dtype
        for c in range(3):
            want = (images[:, c].double() / 255 - self.mean[c].double()) / self.std[c].double()
            assert torch.allclose(got[:, c].double(), want, rtol=0, atol=tolerance)

    def test_black_and_white(self) -> None:
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        got = normalise(ends, torch.tensor([0.25]), torch.tensor([0.5]))
        assert got.flatten().tolist() == pytest.approx([-0.5, 1.5], abs=1e-6)
