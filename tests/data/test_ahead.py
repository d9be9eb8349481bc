"""Reading one step ahead: the same images, by another thread, and its errors where they belong."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data import loader as loading
from akd.data.ahead import Ahead
from akd.data.loader import DeviceLoader
from akd.data.policies import create_policy
from akd.world import ALONE


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=200)
    return split(config, load(config))


def reading(data: TrainData, monkeypatch: pytest.MonkeyPatch, augment: Any, **settings: Any) -> DeviceLoader:
    """A loader whose images stay where they are."""
    monkeypatch.setattr(loading, "resident", lambda images, device: False)
    policy = create_policy(resolve({"method": {"host": "kd", "augment": augment}}).method.augment, data)
    where = {"device": torch.device("cpu"), "dtype": torch.float32, "world": ALONE}
    return DeviceLoader(data, batch_size=32, seed=0, plan_seed=0, policy=policy, **where, **settings)


@pytest.mark.parametrize("augment", ["none", "cutmix", {"name": "mixup", "form": "only"}], ids=str)
def test_all_but_the_first_steps_images_are_read_by_another_thread(
    augment: Any, data: TrainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, real, here = reading(data, monkeypatch, augment, passes=2), loading.read, threading.get_ident()
    by_caller: list[int] = []
    elsewhere: list[int] = []

    def read(images: Tensor, rows: Tensor, pinned: bool) -> Tensor:
        (by_caller if threading.get_ident() == here else elsewhere).append(len(rows))
        return real(images, rows, pinned)

    monkeypatch.setattr(loading, "read", read)
    steps = sum(1 for _ in loader.epoch(1))
    each = 1 if augment == "none" else 2  # an image, and its partner
    assert steps == loader.steps == 10
    assert (len(by_caller), len(elsewhere)) == (2 * each, (steps - 2) * each)
    assert loader.ahead is None
    assert not any(t.name.startswith("akd-read-ahead") for t in threading.enumerate())


def test_an_epoch_left_half_way_leaves_no_thread(data: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = reading(data, monkeypatch, "none").epoch(1)
    next(epoch)
    assert any(t.name.startswith("akd-read-ahead") for t in threading.enumerate())
    epoch.close()
    assert not any(t.name.startswith("akd-read-ahead") for t in threading.enumerate())


def test_images_that_were_not_announced_are_read_at_once() -> None:
    ahead = Ahead(lambda rows: 10 * rows)
    first, second, other = torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([7, 8])
    for rows in (first, second):
        ahead.expect(rows)
    assert [ahead.take(rows).tolist() for rows in (other, first.clone(), second)] == [[70, 80], [10, 20], [30]]
    ahead.close()


def test_an_error_of_reading_is_raised_where_the_images_are_asked_for() -> None:
    def read(rows: Tensor) -> Tensor:
        raise OSError("the disk is gone")

    ahead = Ahead(read)
    ahead.expect(torch.tensor([1]))
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(torch.tensor([1]))
    ahead.close()
