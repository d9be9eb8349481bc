"""Batched crop and flip against one image at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.data.augment import Augment, normalise


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
