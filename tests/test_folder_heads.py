"""A run that lives in a folder: what of a killed run's two stages is found again, and told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.data import DataConfig, TrainData, load, split
from akd.models import seeded_model
from akd.state import TrainState
from akd.summary import costs
from akd.teacher import LiveTeacher

HEADS, EPOCHS = 3, 2


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=200)
    return split(config, load(config))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return seeded_model("wrn_16_1", 10, seed=7, in_channels=1)


def experiment() -> Experiment:
    views = {"name": "angular_kd", "count": 2, "head_warmup_epochs": HEADS}
    return resolve({"method": {"views": views}, "train": {"epochs": EPOCHS, "lr": 0.1, "precision": "float32"}})


def train(folder: Path, data: TrainData, teacher: nn.Module, **kw: Any) -> None:
    if run_folder.Run.read(folder) is None:
        run_folder.create(folder, experiment(), run_folder.Run("trial", "trial 0"))
    run_folder.train(folder, experiment(), data, LiveTeacher(teacher), **kw)


def told(folder: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Both stages without their times."""
    stages = run_folder.head_history(folder), run_folder.history(folder)
    heads, epochs = (
        [{k: v for k, v in e.items() if k != "at" and not k.startswith("time/")} for e in stage] for stage in stages
    )
    return heads, epochs


@pytest.fixture(scope="module")
def whole(data: TrainData, teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "trials" / "00000"
    train(folder, data, teacher)
    return folder


def test_stages_have_a_file_each(whole: Path) -> None:
    heads, epochs = told(whole)
    assert [e["head_epoch"] for e in heads] == [1, 2, 3]
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert "epoch" not in heads[0]
    assert "head_epoch" not in epochs[0]


def test_head_epochs_are_charged(whole: Path, data: TrainData) -> None:
    """Seconds of both stages; the teacher saw every image of every epoch of both."""
    seconds, asked, made = costs(whole.parents[1], None)
    entries = [*run_folder.head_history(whole), *run_folder.history(whole)]
    assert seconds == sum(e["time/epoch_s"] for e in entries)
    assert asked == made == (HEADS + EPOCHS) * (len(data.train) // 64 * 64)


@pytest.mark.parametrize("place", ["before its checkpoint", "after its checkpoint"])
@pytest.mark.parametrize("moment", range(HEADS + EPOCHS))
def test_killed_at_any_epoch_of_either_stage_and_resumed(
    moment: int, place: str, whole: Path, data: TrainData, teacher: nn.Module, tmp_path: Path, monkeypatch: Any
) -> None:
    save, count = TrainState.save, [0]

    def killing(state: TrainState, *args: Any, **kw: Any) -> Path:
        if count[0] == moment and place.startswith("before"):
            raise Killed
        path = save(state, *args, **kw)
        if count[0] == moment:
            raise Killed
        count[0] += 1
        return path

    monkeypatch.setattr(TrainState, "save", killing)
    with pytest.raises(Killed):
        train(tmp_path, data, teacher)
    monkeypatch.setattr(TrainState, "save", save)
    train(tmp_path, data, teacher)
    assert told(tmp_path) == told(whole)
    mine, theirs = (load_file(f / "student" / "student.safetensors") for f in (tmp_path, whole))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
