"""Teachers are trained once, found again, and known by everything their weights depend on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.data import TrainData, split
from akd.data import load as load_data
from akd.teacher.keep import as_experiment, load_teacher, obtain, teacher_hash

TREE: dict[str, Any] = {
    "data": {"name": "digits", "subset": 150},
    "teacher": {"name": "resnet8", "train": {"epochs": 3, "batch_size": 32, "lr": 0.1}},
    "student": "wrn_16_1",
    "train": {"epochs": 5, "batch_size": 16},
    "space": {"train.lr": {"choices": [0.1, 0.2]}},
}


def build(**changes: Any) -> tuple[Experiment, TrainData]:
    """The experiment with dotted keys changed, and its data."""
    experiment = resolve(TREE).with_values({k.replace("__", "."): v for k, v in changes.items()})
    return experiment, split(experiment.data, load_data(experiment.data))


class TestHash:
    @pytest.mark.parametrize(
        "change",
        [
            {"teacher__name": "resnet20"},
            {"teacher__train__lr": 0.2},
            {"teacher__train__epochs": 4},
            {"teacher__train__batch_size": 64},
            {"teacher__train__seed": 1},
            {"teacher__train__plan_seed": 1},
            {"teacher__train__ema": 0.5},
            {"teacher__train__precision": "float64"},
            {"data__split_seed": 1},
            {"data__subset": 160},
            {"data__validation": 0.2},
            {"data__augment": "none"},
            {"data__crop_padding": 2},
        ],
        ids=lambda c: next(iter(c)),
    )
    def test_changes_with_what_changes_the_teacher(self, change: dict[str, Any]) -> None:
        assert teacher_hash(*build(**change)) != teacher_hash(*build())

    @pytest.mark.parametrize(
        "change",
        [
            {"student__name": "resnet20"},
            {"method__host__temperature": 2.0},
            {"method__host__name": "none"},
            {"train__lr": 0.3},
            {"train__seed": 5},
            {"train__epochs": 9},
            {"search__trials": 3},
            {"search__seed": 3},
            {"teacher__train__threads": 2},  # another machine
            {"data__dir": "elsewhere"},
        ],
        ids=lambda c: next(iter(c)),
    )
    def test_stays_with_everything_else(self, change: dict[str, Any]) -> None:
        assert teacher_hash(*build(**change)) == teacher_hash(*build())

    def test_changes_with_the_images(self) -> None:
        experiment, data = build()
        images = data.dataset.images.clone()
        images[0, 0, 0, 0] += 1
        assert teacher_hash(experiment, replace(data, dataset=replace(data.dataset, images=images))) != teacher_hash(
            experiment, data
        )

    def test_is_short_and_plain(self) -> None:
        name = teacher_hash(*build())
        assert len(name) == 16
        assert int(name, 16) >= 0


def training(experiment: Experiment, data: TrainData, on_epoch: Any) -> Any:
    """How a study trains a teacher, in this process."""
    own = as_experiment(experiment)
    return lambda folder: run_folder.train(folder, own, data, None, on_epoch=on_epoch)


class TestObtain:
    def test_trains_once_and_is_found_again(self, tmp_path: Path) -> None:
        experiment, data = build()
        started: list[Path] = []
        epochs: list[int] = []

        def train(folder: Path) -> None:
            started.append(folder)
            training(experiment, data, lambda r: epochs.append(r.epoch))(folder)

        first = obtain(experiment, data, tmp_path / "teachers", train)
        assert (first.found, epochs, started) == (False, [1, 2, 3], [first.folder])
        assert first.folder == tmp_path / "teachers" / first.hash
        before = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
        other, _ = build(student__name="resnet20", train__lr=0.3)
        second = obtain(other, data, tmp_path / "teachers", train)
        assert second == replace(first, found=True)
        assert len(epochs) == 3
        assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")} == before
        run = run_folder.Run.read(first.folder)
        assert run is not None
        assert (run.kind, run.state, run.tags) == ("teacher", run_folder.COMPLETE, {"teacher_hash": first.hash})

    def test_is_a_plain_classifier_that_never_saw_the_validation_images(self, tmp_path: Path) -> None:
        experiment, data = build()
        own = as_experiment(experiment)
        assert (own.student.name, own.method.host_name, own.train) == ("resnet8", "none", experiment.teacher.train)
        teacher = obtain(experiment, data, tmp_path)
        # Other validation images: the same weights. One more training image: others.
        poisoned = data.dataset.images.clone()
        poisoned[data.val] = 255
        again = obtain(experiment, replace(data, dataset=replace(data.dataset, images=poisoned)), tmp_path / "second")
        a, b = (load_file(t.folder / "student" / "student.safetensors") for t in (teacher, again))
        assert all(torch.equal(a[k], b[k]) for k in a)

    def test_loaded_as_it_was_scored(self, tmp_path: Path) -> None:
        experiment, data = build()
        teacher = obtain(experiment, data, tmp_path)
        model = load_teacher(teacher.folder)
        assert not model.training
        dataset = data.dataset
        images = (dataset.images[data.val].double() / 255 - dataset.mean[0]) / dataset.std[0]
        right = (model(images.float()).logits.argmax(1) == dataset.labels[data.val]).double().mean().item()
        assert right == pytest.approx(teacher.accuracy)


PROGRAM = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_teacher_keep import build, training
from akd.teacher.keep import obtain
experiment, data = build()

def on_epoch(record):
    print("epoch", record.epoch, flush=True)
    time.sleep(float(sys.argv[3]))

print("ready", flush=True)
teacher = obtain(experiment, data, Path(sys.argv[2]), training(experiment, data, on_epoch))
print("found", teacher.found, teacher.accuracy, flush=True)
"""


def start(store: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(store), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_train_it_once(tmp_path: Path) -> None:
    both = [start(tmp_path, 0.3) for _ in range(2)]
    lines = [p.communicate(timeout=60)[0].splitlines() for p in both]
    assert sorted(sum(line.startswith("epoch") for line in out) for out in lines) == [0, 3]
    assert sorted(out[-1].split()[1] for out in lines) == ["False", "True"]
    assert len({out[-1].split()[2] for out in lines}) == 1


def test_killed_in_its_training_goes_on_and_equals_undisturbed(tmp_path: Path) -> None:
    process = start(tmp_path / "cut", 30)
    assert process.stdout is not None
    try:
        while process.stdout.readline() != "epoch 1\n":
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=30)
    experiment, data = build()
    epochs: list[int] = []
    began = time.monotonic()
    cut = obtain(experiment, data, tmp_path / "cut", training(experiment, data, lambda r: epochs.append(r.epoch)))
    assert time.monotonic() - began < 30  # the lock died with its holder
    assert (epochs, cut.found) == ([1, 2, 3], False)  # 1 is told again, not trained again
    whole = obtain(experiment, data, tmp_path / "whole")
    assert cut.accuracy == whole.accuracy
    a, b = (load_file(t.folder / "student" / "student.safetensors") for t in (cut, whole))
    assert all(torch.equal(a[k], b[k]) for k in a)
