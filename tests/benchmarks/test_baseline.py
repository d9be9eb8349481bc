"""The baseline and the floor: that both sides of a comparison do the same work, and that work is counted right."""

from __future__ import annotations

from pathlib import Path

import floor
import pytest
import study_speed
import throughput
import torch
from baseline import BATCH, Loop, akd_dataset, calibrated, torchvision_dataset
from torch import nn

from akd.config import resolve
from akd.data import TrainData
from akd.data.augment import Augment
from akd.fit import fit
from akd.models import seeded_model
from akd.teacher import LiveTeacher


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, whatever this machine has."""
    monkeypatch.delenv("AKD_DATA", raising=False)


def test_both_sides_take_the_same_step() -> None:
    """One step on the same 64 images, without augmentation: same loss, same weights afterwards."""
    dataset = akd_dataset(None)
    rows = torch.arange(BATCH)
    teacher = calibrated(seeded_model("wrn_16_1", 100, 1), torch.randn(8, 3, 32, 32))
    loop = Loop(seeded_model("resnet8", 100, 0), teacher, rows, None)
    loop.loader.dataset.dataset = torchvision_dataset(None, augment=False)
    loss, accuracy = loop.epoch()
    train = {"epochs": 1, "nesterov": True, "lr": 0.05, "schedule": "constant", "precision": "float32", "ema": 0}
    experiment = resolve({"method": "kd", "student": "resnet8", "train": train})
    result = fit(experiment, TrainData(dataset, rows, rows[:0], Augment()), LiveTeacher(teacher))
    assert result.history[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert result.history[0]["train/accuracy"] == pytest.approx(accuracy)
    for mine, theirs in zip(result.student.parameters(), loop.student.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_counts_of_a_convolution_and_a_product() -> None:
    net, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(128, 5)),
        torch.randn(2, 3, 4, 4),
    )
    with torch.no_grad():
        found = floor.work(lambda: net(x))
    assert found.operations == 2 * (2 * 8 * 16 * 27 + 2 * 128 * 5)
    first = 4 * (x.numel() + net[0].weight.numel() + 2 * 8 * 16)
    assert found.bytes == pytest.approx(first + 4 * (2 * 128 + 128 * 5 + 5 + 2 * 5))


def test_a_grouped_convolution_costs_its_groups_forward_and_backward() -> None:
    net, x = nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False), torch.randn(2, 8, 4, 4, requires_grad=True)
    out = net(x)
    once = 2 * (2 * 16 * 16) * (2 * 9)
    assert floor.work(lambda: net(x)).operations == once
    assert floor.work(lambda: out.sum().backward()).operations == 2 * once


def test_floors_of_a_machine() -> None:
    on = floor.Machine(operations=100.0, rates=((1000, 50.0), (10_000, 10.0)))
    work = floor.Work(300.0, 2500.0, ((300.0, 100.0), (0.0, 400.0), (0.0, 2000.0)))
    assert on.arithmetic(work) == 3.0
    assert on.traffic(work) == pytest.approx(3 + 400 / 50 + 2000 / 10)


def test_backward_of_a_network_is_counted() -> None:
    net, images = seeded_model("resnet8", 10, 0), torch.randn(4, 3, 32, 32)
    once = floor.forward(net, images).operations
    step = floor.training(net, images, torch.zeros(4, dtype=torch.long)).operations
    stem = 2 * 4 * 16 * 32 * 32 * 27  # images need no gradient
    assert step == pytest.approx(3 * once - stem)


def test_throughput_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    found = throughput.main(["wrn_16_1:resnet8", "--rounds", "1", "--steps", "1"])["wrn_16_1:resnet8"]
    assert "stand-in" in capsys.readouterr().out
    assert all(value > 0 for value in found.values())


def test_a_study_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["wrn_16_1:resnet8", "--trials", "2", "--epochs", "1", "--images", "64", "--steps", "1"]
    found = study_speed.main(arguments)["wrn_16_1:resnet8"]
    assert found["ratio"] == pytest.approx(found["baseline training"] / found["akd training"])
    t, s = found["teacher step"], found["student step"]
    assert found["ceiling"] == pytest.approx(2 * (t + s) / (2 * s + t))
    assert "wrn_16_1 -> resnet8" in capsys.readouterr().out
    assert not Path("trials").exists()
