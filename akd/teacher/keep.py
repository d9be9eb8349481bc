"""Training a teacher once and finding it again: kept under a hash of everything its weights depend on.

A teacher whose weights are given is kept the same way, with the accuracy that was measured instead of trained for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from akd import checkpoint
from akd import folder as run_folder
from akd.config import CacheConfig, Experiment, StudentConfig
from akd.data.augment import normalise
from akd.data.dataset import TrainData
from akd.data.loader import evaluation_batch
from akd.errors import ExperimentError, reason
from akd.methods import MethodConfig
from akd.methods.none import NoneConfig
from akd.metrics import evaluate
from akd.models import check_images, create_model, load_weights, networks, seeded_model
from akd.models.layout import channels_last
from akd.teacher.source import Renormalised


@dataclass(frozen=True)
class Teacher:
    """A trained teacher on disk.

    Attributes:
        hash: of architecture, training settings, data and split.
        folder: its run folder.
        accuracy: top-1 on the validation split, which it was not trained on (if its weights were given: may have been).
        found: it was there already, or its weights were given.
    """

    hash: str
    folder: Path
    accuracy: float
    found: bool


def as_experiment(experiment: Experiment) -> Experiment:
    """The teacher's own training as an experiment: the teacher network in the student's place, hard labels only."""
    return replace(
        experiment,
        student=StudentConfig(name=experiment.teacher.name, taps=experiment.teacher.taps),
        teacher=replace(experiment.teacher, cache=CacheConfig()),  # it learns from images of its own, all different
        method=MethodConfig(host=NoneConfig()),
        train=experiment.teacher.train,
        search=replace(experiment.search, scheduler="none"),  # nothing stops a teacher: its schedule has no rungs
        space={},
    )


def build(experiment: Experiment, data: TrainData) -> nn.Module:
    """The teacher's network, in eval mode; with its weights if they are given.

    Raises:
        ExperimentError: name, images, weights or normalisation do not fit; the message names the key.
    """
    teacher, dataset = experiment.teacher, data.dataset
    key, value = "teacher", teacher.name
    try:
        check_images(teacher.name, *dataset.size)
        kw = {"in_channels": dataset.channels, "image_size": dataset.size, "taps": teacher.taps}
        net = seeded_model(teacher.name, len(dataset.classes), experiment.train.seed, **kw)
        if teacher.weights is not None:
            key, value = "teacher.weights", teacher.weights
            load_weights(net, Path(teacher.weights))
        key, value = "teacher.mean", str(list(teacher.mean))
        if teacher.mean and len(teacher.mean) != dataset.channels:
            raise ExperimentError(f"must have {dataset.channels} values, one for each channel")
    except (ExperimentError, TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, ExperimentError) else str(error)
        where = experiment.origins.of(f"{key}.name" if key == "teacher" else key)
        raise ExperimentError(problem, key=key, value=value, where=where) from None
    return net.eval()


def teacher_hash(experiment: Experiment, data: TrainData) -> str:
    """Sixteen hex digits that change whenever the teacher's weights would."""
    own = as_experiment(experiment).to_dict()
    # What says nothing is left out, so that teachers kept before there were such settings are found: an empty list of
    # taps, a factor of 1. Threads and compilation change a sum's rounding, not what the teacher is.
    silent = {"threads": own["train"]["threads"], "compile": own["train"]["compile"], "epoch_factor": 1, "restarts": []}
    parts = {
        "model": {k: v for k, v in own["student"].items() if v},
        "train": {k: v for k, v in own["train"].items() if (k, v) not in silent.items()},
        "data": data.hash,
        "augment": data.augment.identity,
        "normalise": [data.dataset.mean, data.dataset.std],
        "format": 1,
    }
    teacher = experiment.teacher
    if not networks.registered(teacher.name):  # its code is not akd's: what it builds tells one version from another
        parts["network"] = str(build(experiment, data))
    if teacher.weights is not None:
        del parts["train"], parts["augment"]
        parts["weights"] = hashlib.sha256(Path(teacher.weights).read_bytes()).hexdigest()
        parts["own normalise"] = [teacher.mean, teacher.std]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _keep_given(folder: Path, own: Experiment, experiment: Experiment, data: TrainData, run: run_folder.Run) -> None:
    """Fill the folder of a teacher whose weights are given: measured on the validation split, not trained."""
    teacher, dataset = experiment.teacher, data.dataset
    net = build(experiment, data)
    mean, std = teacher.mean or dataset.mean, teacher.std or dataset.std
    means, stds = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    batches = (
        (normalise(dataset.plain(dataset.images[rows]), means, stds), dataset.labels[rows])
        for rows in data.val.split(evaluation_batch(dataset, "cpu"))
    )
    scores = {f"val/{k}": v for k, v in evaluate(net, batches).items()}
    facts = {"epoch": 0, "validation_accuracy": scores["val/accuracy"], "weights": Path(teacher.weights or "").name}
    facts["normalise"] = {"mean": list(mean), "std": list(std), "range": "0..1"}
    facts["data_normalise"] = {"mean": list(dataset.mean), "std": list(dataset.std), "range": "0..1"}
    run_folder.create(folder, own, run)
    run_folder.export(folder / "student", net, own, data, facts)
    line = json.dumps({"epoch": 0, "at": time.time(), **scores})
    checkpoint.write_text(folder / "history.jsonl", line + "\n")
    run.end(folder, run_folder.COMPLETE, None, **scores)


def find(experiment: Experiment, data: TrainData, store: Path) -> Teacher | None:
    """The experiment's teacher if ``store`` has it, trained to the end."""
    name = teacher_hash(experiment, data)
    run = run_folder.Run.read(store / name)
    if run is None or run.state != run_folder.COMPLETE:
        return None
    return Teacher(name, store / name, run_folder.accuracy(store / name), found=True)


def obtain(
    experiment: Experiment,
    data: TrainData,
    store: Path,
    train: Callable[[Path], object] | None = None,
    *,
    threads: int | None = None,
) -> Teacher:
    """The experiment's teacher: found in ``store``, or trained there (going on where a killed run stopped).

    Args:
        store: folder of all teachers; one subfolder a hash. A file lock lets one process train while others wait.
        train: trains the run in a folder to its end, by default in this process; not called for a teacher that is
            found.
        threads: of a step, where the experiment leaves them open.
    """
    own = as_experiment(experiment)
    if own.train.threads is None:
        own = replace(own, train=replace(own.train, threads=threads))
    name = teacher_hash(experiment, data)
    folder = store / name
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / f".{name}.lock"):
        kept = find(experiment, data, store)
        if kept is not None:
            return kept
        run = run_folder.Run.read(folder)
        if experiment.teacher.weights is not None:
            tags = {"teacher_hash": name, "teacher_saw_validation": "may have"}
            given = run_folder.Run("teacher", f"teacher {own.student.name}", tags=tags)
            _keep_given(folder, own, experiment, data, given)
            return Teacher(name, folder, run_folder.accuracy(folder), found=True)
        if run is None:
            tags = {"teacher_hash": name}
            run = run_folder.Run("teacher", f"teacher {own.student.name}", tags=tags)
            run_folder.create(folder, own, run)
        if train is not None:
            train(folder)
        else:
            run_folder.train(folder, own, data, None)
        run.end(folder, run_folder.COMPLETE)
        return Teacher(name, folder, run_folder.accuracy(folder), found=False)


def load_student(folder: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """A network handed over by akd (``student.safetensors`` with ``config.json`` beside it), in eval mode.

    Raises:
        ExperimentError: a file is not there, damaged, or of another network.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        kw = {"in_channels": config["in_channels"], "image_size": tuple(config["image_size"])}
        model = create_model(config["model"], config["num_classes"], taps=config.get("taps", ()), **kw)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ExperimentError):
            raise
        problem = f"{folder / 'config.json'} is not what akd hands over: {type(error).__name__}: {reason(error)}"
        raise ExperimentError(problem, key="student") from None
    weights = folder / "student.safetensors"
    try:
        load_weights(model, weights)
    except ExperimentError as error:
        raise ExperimentError(error.problem, key="student", value=str(weights)) from None
    image = torch.zeros(1, config["in_channels"], *config["image_size"], device=device)
    return channels_last(model.to(device).eval(), image)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a network that was handed over.

    Raises:
        ExperimentError: it is not there or damaged.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not {"model", "num_classes", "normalise"} <= set(config):
            raise ValueError("it lacks model, classes or normalisation")
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8
        why = error.strerror if isinstance(error, OSError) else f"it is damaged: {reason(error)}"
        raise ExperimentError(f"cannot be read: {why}", key="student", value=str(path)) from None
    return config


def load_teacher(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a teacher's run folder, in eval mode, for images normalised as the student sees them."""
    model = load_student(folder / "student", device)
    config = json.loads((folder / "student" / "config.json").read_text(encoding="utf-8"))
    own, data = config["normalise"], config.get("data_normalise", config["normalise"])
    if (own["mean"], own["std"]) == (data["mean"], data["std"]):
        return model
    return Renormalised(model, own["mean"], own["std"], data["mean"], data["std"]).to(device).eval()
