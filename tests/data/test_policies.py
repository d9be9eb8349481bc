"""Policies against literal references that go image by image, straight from the definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.data import DataConfig, EpochPlan, TrainData, load, mixing, split
from akd.data.operations import OPERATIONS, SIGNED, apply_each, magnitudes
from akd.data.policies import Policy, augments, create_policy, sub_policies
from akd.errors import ExperimentError

N = 40
SIZE = (9, 12)
MEAN = (0.4, 0.5, 0.6)


def policy(name: str, **kw: Any) -> Policy:
    config = augments.info(name)["config"](name=name, **kw)
    return augments.get(name)(config, SIZE, MEAN)


def pictures(channels: int = 3, count: int = N, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *SIZE), generator=draw, dtype=torch.uint8)


def paired(plan: EpochPlan) -> Tensor:
    return plan.partner(torch.arange(N))


class TestMixup:
    @pytest.mark.parametrize("alpha", [1.0, 0.3, 2.0])
    def test_image_by_image(self, alpha: float) -> None:
        from scipy.stats import beta

        plan, images = EpochPlan(3, 2, N), pictures()
        p, partner = policy("mixup", alpha=alpha), paired(EpochPlan(3, 2, N))
        table = p.table(plan)
        got = p(images, images[partner], torch.float64, *table)
        assert got.dtype == torch.float64
        for i in range(N):
            lam = beta.ppf(plan.mix[i].double().item(), alpha, alpha)
            assert p.lam(*table)[i].item() == pytest.approx(lam, abs=1e-9)
            want = lam * images[i].double() + (1 - lam) * images[partner[i]].double()
            assert torch.allclose(got[i], want, atol=1e-6)

    def test_probability(self) -> None:
        p = policy("mixup", probability=0.25)
        lam = p.lam(*p.table(EpochPlan(0, 1, 4000)))
        assert (lam == 1).double().mean().item() == pytest.approx(0.75, abs=0.03)
        full = policy("mixup").table(EpochPlan(0, 1, 4000))[0]
        assert torch.equal(lam[lam != 1], full[lam != 1])


class TestCutMix:
    @pytest.mark.parametrize("alpha", [1.0, 0.5])
    def test_image_by_image(self, alpha: float) -> None:
        """Equation 2 of the paper, pixel by pixel; lam is the share of own pixels that are really there."""
        plan, partner = EpochPlan(1, 4, N), paired(EpochPlan(1, 4, N))
        p, height, width = policy("cutmix", alpha=alpha), *SIZE
        own, other = torch.zeros(N, 3, *SIZE, dtype=torch.uint8), torch.ones(N, 3, *SIZE, dtype=torch.uint8)
        table = p.table(plan)
        got = p(own, other[partner], torch.float32, *table)
        assert got.dtype == torch.uint8
        for i in range(N):
            lam = mixing.beta_quantile(plan.mix[i : i + 1], alpha).item()
            cut_height, cut_width = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
            centre_y, centre_x = int(plan.box[i, 0].item() * height), int(plan.box[i, 1].item() * width)
            top, left = centre_y - cut_height // 2, centre_x - cut_width // 2
            pasted = 0
            for y in range(height):
                for x in range(width):
                    within = top <= y < top + cut_height and left <= x < left + cut_width
                    pasted += within
                    assert (got[i, :, y, x] == int(within)).all()
            assert p.lam(*table)[i].item() == pytest.approx(1 - pasted / (height * width), abs=1e-12)

    @settings(max_examples=80, deadline=None)
    @given(
        st.floats(0, 1, exclude_max=True, width=32),
        st.floats(0, 1, exclude_max=True, width=32),
        st.integers(0, 40),
        st.integers(0, 40),
        st.integers(1, 33),
        st.integers(1, 33),
    )
    def test_boxes_stay_inside_and_count_their_pixels(
        self, y: float, x: float, tall: int, wide: int, height: int, width: int
    ) -> None:
        box = mixing.boxes(torch.tensor([[y, x]]), torch.tensor([[tall, wide]]), height, width)
        top, left, bottom, right = box[0].tolist()
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        where = mixing.inside(box, torch.zeros(1, 1, height, width))
        assert where.sum().item() == mixing.area(box).item() == (bottom - top) * (right - left)
        if tall and wide:
            assert top <= int(y * height) <= bottom
            assert bottom - top <= tall

    def test_labels_are_the_area_of_real_boxes(self) -> None:
        """Cut off at the edge, boxes are smaller than drawn: the mean share of the partner is below one half."""
        p = policy("cutmix")
        lam = p.lam(*p.table(EpochPlan(0, 1, 5000)))
        assert 0 <= lam.min().item() < lam.max().item() == 1
        assert 0.6 < lam.mean().item() < 0.75


class TestCutout:
    @pytest.mark.parametrize("share", [0.25, 0.5, 1.0, 0.01])
    def test_image_by_image(self, share: float) -> None:
        plan, images = EpochPlan(5, 1, N), pictures()
        p, height, width = policy("cutout", size=share), *SIZE
        got = p(images, None, torch.float64, *p.table(plan))
        side_y, side_x = max(1, round(share * height)), max(1, round(share * width))
        fill = torch.tensor([255 * m for m in MEAN], dtype=torch.float64)
        for i in range(N):
            top = int(plan.box[i, 0].item() * height) - side_y // 2
            left = int(plan.box[i, 1].item() * width) - side_x // 2
            want = images[i].double()
            for y in range(max(0, top), min(height, top + side_y)):
                for x in range(max(0, left), min(width, left + side_x)):
                    want[:, y, x] = fill
            assert torch.equal(got[i], want)
        assert torch.equal(p.lam(*p.table(plan)), torch.ones(N, dtype=torch.float64))


def operation_by_operation(images: Tensor, steps: list[list[tuple[str, float]]]) -> Tensor:
    """Each image alone through its own operations."""
    done = []
    for image, chain in zip(images, steps, strict=True):
        for name, magnitude in chain:
            code, amount = torch.tensor([OPERATIONS.index(name)]), torch.tensor([magnitude], dtype=torch.float64)
            image = apply_each(image[None], code, amount)[0]
        done.append(image)
    return torch.stack(done)


class TestRandAugment:
    @pytest.mark.parametrize(("count", "magnitude"), [(1, 9), (2, 9), (3, 30), (4, 0)])
    def test_image_by_image(self, count: int, magnitude: int) -> None:
        plan, images = EpochPlan(2, 3, N), pictures()
        p = policy("randaugment", count=count, magnitude=magnitude)
        table = magnitudes(31, *SIZE)
        steps = []
        for i in range(N):
            chain = []
            for k in range(count):
                code = int(plan.strong[i, 2 * k].double().item() * 14)
                amount = table[code, magnitude].item()
                negative = SIGNED[code].item() and plan.strong[i, 2 * k + 1].item() < 0.5
                chain.append((OPERATIONS[code], -amount if negative else amount))
            steps.append(chain)
        got = p(images, None, torch.float32, *p.table(plan))
        assert torch.equal(got, operation_by_operation(images, steps))

    def test_every_operation_but_inversion_and_both_signs_come_up(self) -> None:
        operation, magnitude, _ = policy("randaugment").table(EpochPlan(0, 1, 3000))
        counts = operation.flatten().bincount(minlength=len(OPERATIONS))
        assert counts[:14].min().item() > 330
        assert counts[14].item() == 0
        turned = magnitude[operation == OPERATIONS.index("rotate")]
        assert 0.4 < (turned > 0).double().mean().item() < 0.6
        assert set(turned.abs().tolist()) == {9.0}

    def test_cutout_follows(self) -> None:
        plan, images = EpochPlan(2, 3, N), pictures()
        plain, cut = policy("randaugment"), policy("randaugment", cutout=0.5)
        got = cut(images, None, torch.float64, *cut.table(plan))
        alone = policy("cutout", size=0.5)
        want = alone(plain(images, None, torch.float64, *plain.table(plan)), None, torch.float64, *alone.table(plan))
        assert torch.equal(got, want)

    def test_views_that_are_not_whole_numbers_are_rounded(self) -> None:
        plan, p = EpochPlan(0, 1, N), policy("randaugment")
        images = pictures().float() + 0.3
        whole = p(images.round().to(torch.uint8), None, torch.float32, *p.table(plan))
        assert torch.equal(p(images, None, torch.float32, *p.table(plan)), whole)


class TestAutoAugment:
    @pytest.mark.parametrize("found_on", ["cifar10", "imagenet", "svhn"])
    def test_image_by_image(self, found_on: str) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        listed = AutoAugment(AutoAugmentPolicy(found_on)).policies
        assert len(listed) == 25
        plan, images = EpochPlan(2, 3, N), pictures()
        p, table = policy("autoaugment", policy=found_on), magnitudes(10, *SIZE)
        spelled = {name.replace("_", ""): name for name in OPERATIONS}
        steps = []
        for i in range(N):
            draws = plan.strong[i].double().tolist()
            chain = []
            for k, (op, probability, strength) in enumerate(listed[int(draws[0] * 25)]):
                if draws[1 + k] < probability:
                    name = spelled[op.lower()]
                    amount = 0.0 if strength is None else table[OPERATIONS.index(name), strength].item()
                    negative = SIGNED[OPERATIONS.index(name)].item() and draws[3 + k] < 0.5
                    chain.append((name, -amount if negative else amount))
            steps.append(chain)
        got = p(images, None, torch.float32, *p.table(plan))
        assert torch.equal(got, operation_by_operation(images, steps))

    def test_first_published_pair(self) -> None:
        """The first of the policy found on CIFAR-10: invert with 0.1, contrast with 0.2 at strength 6."""
        operation, probability, strength = (t[0].tolist() for t in sub_policies("cifar10"))
        assert [OPERATIONS[code] for code in operation] == ["invert", "contrast"]
        assert probability == [0.1, 0.2]
        assert strength[1] == 6


@pytest.mark.parametrize("name", augments.names())
class TestEvery:
    def test_a_table_is_a_pure_function_of_the_plan_with_a_row_per_image(self, name: str) -> None:
        one, two = policy(name), policy(name)
        torch.rand(3)
        before = torch.get_rng_state()
        tables = one.table(EpochPlan(1, 2, N)), two.table(EpochPlan(1, 2, N))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(len(t) == N and t.device.type == "cpu" for t in tables[0])
        assert all(torch.equal(a, b) for a, b in zip(*tables, strict=True))
        for other in (EpochPlan(2, 2, N), EpochPlan(1, 3, N), EpochPlan(1, 2, N).other(1)):
            assert any(not torch.equal(a, b) for a, b in zip(tables[0], one.table(other), strict=True))

    def test_config_defaults_and_help(self, name: str) -> None:
        info = augments.info(name)
        assert info["config"]().name == name
        assert info["summary"]
        assert info["paper"].startswith("arXiv:")
        assert info["config"]().form == "second"

    @pytest.mark.parametrize("channels", [1, 3])
    def test_rows_are_independent_of_each_other(self, name: str, channels: int) -> None:
        config = augments.info(name)["config"]()
        p: Policy = augments.get(name)(config, SIZE, (0.5,) * channels)
        images, table = pictures(channels), p.table(EpochPlan(0, 1, N))
        others = pictures(channels, seed=9) if p.mixes else None
        whole = p(images, others, torch.float32, *table)
        part = torch.tensor([31, 2, 17])
        some = p(images[part], others[part] if others is not None else None, torch.float32, *(t[part] for t in table))
        assert torch.equal(some, whole[part])
        assert whole.shape == images.shape
        assert 0 <= whole.min() <= whole.max() <= 255
        assert not torch.equal(whole.float(), images.float())


class TestRefused:
    def data(self, channels: int = 3, rows: int = 10) -> TrainData:
        config = DataConfig(subset=20)
        found = split(config, load(config))
        images = found.dataset.images.expand(-1, channels, -1, -1)
        dataset = type(found.dataset)(
            **{**found.dataset.__dict__, "images": images, "mean": (0.5,) * channels, "std": (0.5,) * channels}
        )
        return TrainData(dataset, found.train[:rows], found.val, found.augment)

    def test_mixing_of_one_image(self) -> None:
        config = augments.info("cutmix")["config"]()
        with pytest.raises(ExperimentError, match=r"method\.augment = 'cutmix': mixes training images, and there is 1"):
            create_policy(config, self.data(rows=1))
        assert create_policy(config, self.data(rows=2)) is not None
        assert create_policy(augments.info("cutout")["config"](), self.data(rows=1)) is not None

    def test_channels(self) -> None:
        config = augments.info("randaugment")["config"]()
        with pytest.raises(ExperimentError, match="1 or 3 channels, these have 2"):
            create_policy(config, self.data(channels=2))
        assert create_policy(augments.info("mixup")["config"](), self.data(channels=2)) is not None

    def test_none(self) -> None:
        assert create_policy(None, self.data()) is None
