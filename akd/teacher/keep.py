"""Training a teacher once and finding it again: kept under a hash of everything its weights depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn

from akd import folder as run_folder
from akd.config import Experiment, StudentConfig
from akd.data.dataset import TrainData
from akd.fit import EpochRecord
from akd.methods import MethodConfig
from akd.methods.none import NoneConfig
from akd.models import create_model


@dataclass(frozen=True)
class Teacher:
    """A trained teacher on disk.

    Attributes:
        hash: of architecture, training settings, data and split.
        folder: its run folder.
        accuracy: top-1 on the validation split, which it was not trained on.
        found: it was there already.
    """

    hash: str
    folder: Path
    accuracy: float
    found: bool


def as_experiment(experiment: Experiment) -> Experiment:
    """The teacher's own training as an experiment: the teacher network in the student's place, hard labels only."""
    return replace(
        experiment,
        student=StudentConfig(name=experiment.teacher.name),
        method=MethodConfig(host=NoneConfig()),
        train=experiment.teacher.train,
        space={},
    )


def teacher_hash(experiment: Experiment, data: TrainData) -> str:
    """Sixteen hex digits that change whenever the teacher's weights would."""
    own = as_experiment(experiment).to_dict()
    parts = {
        "model": own["student"],
        # Threads change a sum's rounding, not what the teacher is; machines differ in them.
        "train": {k: v for k, v in own["train"].items() if k != "threads"},
        "data": data.hash,
        "augment": data.augment.identity,
        "normalise": [data.dataset.mean, data.dataset.std],
        "format": 1,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def obtain(
    experiment: Experiment,
    data: TrainData,
    store: Path,
    *,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_start: Callable[[Path], None] = lambda folder: None,
) -> Teacher:
    """The experiment's teacher: found in ``store``, or trained there (going on where a killed run stopped).

    Args:
        store: folder of all teachers; one subfolder a hash. A file lock lets one process train while others wait.
        on_start: called with the run folder before training starts; not called for a teacher that is found.
    """
    own = as_experiment(experiment)
    name = teacher_hash(experiment, data)
    folder = store / name
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / f".{name}.lock"):
        run = run_folder.Run.read(folder)
        if run is not None and run.state == run_folder.COMPLETE:
            return Teacher(name, folder, run_folder.accuracy(folder), found=True)
        if run is None:
            tags = {"teacher_hash": name}
            run = run_folder.Run("teacher", f"teacher {own.student.name}", tags=tags)
            run_folder.create(folder, own, run)
        on_start(folder)
        result = run_folder.train(folder, own, data, None, device=device, on_epoch=on_epoch)
        run.end(folder, run_folder.COMPLETE)
        return Teacher(name, folder, result.accuracy, found=False)


def load_student(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """A network handed over by akd (``student.safetensors`` with ``config.json`` beside it), in eval mode."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = create_model(config["model"], config["num_classes"], in_channels=config["in_channels"])
    model.load_state_dict(load_file(folder / "student.safetensors"))
    return model.to(device).eval()


def load_teacher(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a teacher's run folder, in eval mode."""
    return load_student(folder / "student", device)
