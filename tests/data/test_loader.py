"""The device loader: what each step sees, alone and shared."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from akd.data import Batch, DataConfig, EpochPlan, TrainData, load, rand, split, training_order
from akd.data.augment import normalise
from akd.data.loader import DeviceLoader, batch_of
from akd.world import ALONE, World


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=200)
    return split(config, load(config))  # 180 training rows


def loader(data: TrainData, world: World = ALONE, **kw: Any) -> DeviceLoader:
    settings = {"batch_size": 50, "seed": 3, "plan_seed": 4, "dtype": torch.float32} | kw
    return DeviceLoader(data, device=torch.device("cpu"), world=world, **settings)


def test_drops_the_last_partial_batch(data: TrainData) -> None:
    assert loader(data).steps == 3
    batches = list(loader(data).epoch(1))
    assert [len(images) for images, _ in batches] == [50, 50, 50]
    seen = torch.cat([batch.index for _, batch in batches])
    assert torch.equal(seen, training_order(3, 1, data.train)[:150])
    assert len(seen.unique()) == 150


def test_images_are_cropped_by_plan_and_normalised(data: TrainData) -> None:
    plan = EpochPlan(4, 2, len(data.dataset.labels))
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (data.dataset.mean, data.dataset.std))
    for images, batch in loader(data).epoch(2):
        rows = batch.index
        raw = data.augment(data.dataset.images[rows], plan.crop[rows], plan.flip[rows])
        assert torch.equal(images, normalise(raw, mean, std))
        assert torch.equal(batch.target, data.dataset.labels[rows])


def test_batch_fields(data: TrainData) -> None:
    for step, (images, batch) in enumerate(loader(data, dtype=torch.float64).epoch(7)):
        assert (batch.epoch, batch.step, batch.offset, batch.total) == (7, step, 0, 50)
        assert torch.equal(batch.target2, batch.target)
        assert batch.lam.eq(1).all()
        assert batch.view.eq(0).all()
        assert batch.lam.dtype == images.dtype == torch.float64


def test_a_sample_meets_one_crop_whatever_split_batch_size_and_seed(data: TrainData) -> None:
    other = split(DataConfig(subset=700, split_seed=8), data.dataset)

    def seen(*args: Any, **kw: Any) -> dict[int, Tensor]:
        rows: dict[int, Tensor] = {}
        for images, batch in loader(*args, **kw).epoch(1):
            rows.update(zip(batch.index.tolist(), images, strict=True))
        return rows

    one, two = seen(data), seen(other, batch_size=33, seed=99)
    both = one.keys() & two.keys()
    assert len(both) > 20
    assert all(torch.equal(one[i], two[i]) for i in both)
    replanned = seen(data, plan_seed=5)
    assert one.keys() == replanned.keys()  # the plan is no part of the order
    assert sum(not torch.equal(one[i], replanned[i]) for i in one) > 100


def test_epochs_differ_and_repeat(data: TrainData) -> None:
    def indices(epoch: int) -> list[int]:
        return torch.cat([batch.index for _, batch in loader(data).epoch(epoch)]).tolist()

    assert indices(1) == indices(1)
    assert indices(1) != indices(2)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("batch_size", [50, 7])
def test_shares_of_a_world_are_slices_of_the_batch(data: TrainData, size: int, batch_size: int) -> None:
    whole = list(loader(data, batch_size=batch_size).epoch(1))
    shares = [list(loader(data, World(rank, size), batch_size=batch_size).epoch(1)) for rank in range(size)]
    for step, (images, batch) in enumerate(whole):
        mine = [share[step] for share in shares]
        sizes = [len(b.index) for _, b in mine]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([i for i, _ in mine]), images)
        for field in ("index", "target", "target2", "lam", "view"):
            assert torch.equal(torch.cat([getattr(b, field) for _, b in mine]), getattr(batch, field))
        assert [b.offset for _, b in mine] == [sum(sizes[:r]) for r in range(size)]
        assert {b.total for _, b in mine} == {batch_size}


def test_draws_of_a_step_are_global_and_sliced(data: TrainData) -> None:
    """A sample gets the same noise however many workers share its batch, in every step of the epoch."""

    def draws(world: World) -> list[tuple[Tensor, Tensor]]:
        return [(rand(b, 3), rand(b, 2, 2, normal=True)) for _, b in loader(data, world).epoch(2)]

    whole = draws(ALONE)
    shares = [draws(World(rank, 3)) for rank in range(3)]
    for step in range(3):
        for kind in (0, 1):
            assert torch.equal(torch.cat([s[step][kind] for s in shares]), whole[step][kind])
    assert not torch.equal(whole[0][0], whole[1][0])


def test_draws_hang_on_seed_and_epoch_only(data: TrainData) -> None:
    def first(epoch: int = 1, **kw: Any) -> Tensor:
        torch.rand(1)
        return rand(next(loader(data, **kw).epoch(epoch))[1], 2)

    assert torch.equal(first(), first(plan_seed=9))
    assert not torch.equal(first(), first(seed=9))
    assert not torch.equal(first(), first(epoch=2))


def test_rand() -> None:
    def batch(**kw: int) -> Batch:
        n = torch.zeros(4, dtype=torch.long)
        return Batch(n, n, n, torch.ones(4), n, 1, 0, torch.Generator().manual_seed(0), **kw)

    assert rand(batch(), 5).shape == (4, 5)
    assert rand(batch()).shape == (4,)
    assert rand(batch(offset=6, total=10), 5).shape == (4, 5)
    uniform, normal = rand(batch(), 5000), rand(batch(), 5000, normal=True)
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert float(normal.min()) < -2
    assert float(normal.mean()) == pytest.approx(0, abs=0.05)
    assert float(normal.std()) == pytest.approx(1, abs=0.05)


def test_plain_images_are_not_augmented(data: TrainData) -> None:
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (data.dataset.mean, data.dataset.std))
    got = list(loader(data).plain(data.val, batch_size=8))
    assert [len(labels) for _, labels in got] == [8, 8, 4]
    assert torch.equal(torch.cat([i for i, _ in got]), normalise(data.dataset.images[data.val], mean, std))
    assert torch.equal(torch.cat([t for _, t in got]), data.dataset.labels[data.val])


class TestWorld:
    @pytest.mark.parametrize(("size", "batch"), [(1, 5), (2, 5), (3, 64), (7, 50), (5, 5)])
    def test_shares_cover_the_batch(self, size: int, batch: int) -> None:
        bounds = [World(rank, size).share(batch) for rank in range(size)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == batch
        assert all(a[1] == b[0] for a, b in pairwise(bounds))
        sizes = [high - low for low, high in bounds]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1

    def test_alone_gather_and_sum_are_the_thing_itself(self) -> None:
        x = torch.rand(3, requires_grad=True)
        assert ALONE.gather(x, 3) is x
        assert ALONE.sum(x) is x


@pytest.mark.parametrize(
    ("size", "cpu", "gpu"), [((8, 8), 512, 512), ((32, 32), 64, 512), ((64, 64), 16, 512), ((224, 224), 8, 167)]
)
def test_batches_of_evaluation(size: tuple[int, int], cpu: int, gpu: int) -> None:
    assert [batch_of(*size, device) for device in ("cpu", torch.device("cuda", 1))] == [cpu, gpu]
