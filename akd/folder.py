"""A training run that lives in a folder: the truth about a trial, a control, a final run or a teacher.

    experiment.yaml         the resolved experiment
    run.json                what the run is, and how it ended (written by whoever owns the run, the driver)
    history.jsonl           one line an epoch, written by the trainer after the checkpoint of that epoch
    heads.jsonl             the same for the head epochs before the first epoch, of methods that have them
    checkpoints/            the last two epochs
    student/                student.safetensors and config.json: the scored weights of the last epoch
    start/                  the same files: what the student started from, where that was another run's student

Everything else (Optuna's study, MLflow, the terminal) can be made again from these files.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from akd import checkpoint
from akd.config import Experiment
from akd.data.dataset import TrainData
from akd.fit import EpochRecord, FitResult, HeadRecord, fit
from akd.state import TrainState
from akd.teacher.source import TeacherSource
from akd.world import ALONE, World

#: How a run can stand. PRUNED: ended early by the scheduler. FAILED: diverged or crashed, with a reason.
RUNNING, COMPLETE, PRUNED, FAILED = "RUNNING", "COMPLETE", "PRUNED", "FAILED"

#: Below a run's folder: the student it started from.
START = "start"


@dataclass
class Run:
    """What ``run.json`` holds.

    Attributes:
        kind: ``study``, ``trial``, ``control``, ``confirm``, ``final`` or ``teacher``.
        name: unique within the study: ``trial 3``, ``control none``, ``trial 3 seed 101``, ``champion seed 0``.
        number: Optuna's number of a trial, else ``None``.
        parameters: the searched values, dotted key -> value.
        state: RUNNING, COMPLETE, PRUNED or FAILED.
        reason: why it failed.
        rung: the last rung a stopped trial reached.
        results: figures known at the end (``test/accuracy``, ...).
        started, ended: seconds since 1970.
        tags: free facts for the tracker.
    """

    kind: str
    name: str
    number: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    state: str = RUNNING
    reason: str | None = None
    rung: int | None = None
    results: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    ended: float | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep the run in its folder."""
        checkpoint.write_json(folder / "run.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Run | None:
        """The run kept in a folder; ``None`` if it was never written."""
        try:
            return cls(**json.loads((folder / "run.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def end(self, folder: Path, state: str, reason: str | None = None, **results: float) -> None:
        """Say how the run ended, and keep it."""
        self.state, self.reason, self.ended = state, reason, time.time()
        self.results |= results
        self.write(folder)


def create(folder: Path, experiment: Experiment, run: Run) -> None:
    """A fresh run: its folder, experiment and ``run.json`` (last, so that a folder with it is whole)."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / "experiment.yaml", experiment.to_yaml())
    run.write(folder)


def history(folder: Path) -> list[dict[str, float]]:
    """Finished epochs, in order: metrics with ``epoch`` and ``at`` (seconds since 1970); no half lines."""
    return _lines(folder / "history.jsonl", "epoch")


def head_history(folder: Path) -> list[dict[str, float]]:
    """Finished head epochs, as :func:`history`, with ``head_epoch``."""
    return _lines(folder / "heads.jsonl", "head_epoch")


def _lines(path: Path, key: str) -> list[dict[str, float]]:
    epochs: dict[int, dict[str, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
            if not all(isinstance(value, (int, float)) for value in entry.values()):
                continue
            epochs.setdefault(int(entry[key]), entry)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ):  # cut off, or damaged: told again from the checkpoint
            continue
    return [epochs[e] for e in sorted(epochs)]


def _append_line(path: Path, line: str) -> None:
    """Add a line; a half-written one before it (a kill, a full disk) keeps its own line."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")


def _add_lines(path: Path, key: str, entries: Sequence[Mapping[str, float]], known: set[int]) -> None:
    """Lines of the epochs that are not known: the last one, and any whose line was damaged."""
    for entry in entries:
        if int(entry[key]) not in known:
            line = {key: int(entry[key]), "at": time.time()} | {k: v for k, v in entry.items() if k != key}
            _append_line(path, json.dumps(line))


def export(folder: Path, student: nn.Module, experiment: Experiment, data: TrainData, facts: dict[str, Any]) -> None:
    """Write a network as it is handed over: ``student.safetensors`` and ``config.json`` beside it.

    Args:
        folder: made if missing.
        student: the scored network.
        experiment: whose ``student`` this is.
        data: gives classes and normalisation.
        facts: what else belongs beside the weights (accuracy, epoch, ...).
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_tensors(folder / "student.safetensors", student.state_dict())
    config = {
        "model": experiment.student.name,
        "taps": list(experiment.student.taps),
        "num_classes": len(data.dataset.classes),
        "in_channels": data.dataset.channels,
        "image_size": list(data.dataset.size),
        "classes": list(data.dataset.classes),
        "normalise": {"mean": list(data.dataset.mean), "std": list(data.dataset.std), "range": "0..1"},
        "method": experiment.to_dict()["method"],
        **facts,
    }
    checkpoint.write_json(folder / "config.json", config)


def train(
    folder: Path,
    experiment: Experiment,
    data: TrainData,
    source: TeacherSource | None,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_heads: Callable[[HeadRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    every_student: bool = False,
) -> FitResult:
    """Run :func:`akd.fit.fit` in a folder: go on where its last checkpoint ends, keep every epoch.

    The order at the end of an epoch is checkpoint, student, history line, ``on_epoch``: what has been told is never
    ahead of what is kept.

    Args:
        folder: made by :func:`create`; all workers see it, worker 0 writes it.
        world: the workers of this run.
        on_epoch: the carrier's own report, made by every worker.
        on_heads: the same after a head epoch.
        stop: see :func:`akd.fit.fit`.
        every_student: keep the scored weights of each epoch, as ``student/epoch_000003``.
    """
    checkpoints, initial = folder / "checkpoints", folder / START / "student.safetensors"

    def report(record: EpochRecord) -> None:
        if world.rank == 0:
            state: TrainState = record.state
            path = checkpoints / checkpoint.name(record.epoch)
            if not path.exists():  # so is that of a known epoch, if it was damaged
                state.save(checkpoints)
            known = {int(entry["epoch"]) for entry in history(folder)}
            if record.epoch not in known:
                facts = {"epoch": record.epoch, "validation_accuracy": record.metrics.get("val/accuracy")}
                export(folder / "student", state.scored, experiment, data, facts)
                if every_student:
                    export(folder / "students" / path.name, state.scored, experiment, data, facts)
            _add_lines(folder / "history.jsonl", "epoch", state.history, known)
        on_epoch(record)

    def report_heads(record: HeadRecord) -> None:
        if world.rank == 0:
            if not (checkpoints / checkpoint.name(0, record.head_epoch)).exists():
                record.state.save(checkpoints)
            known = {int(entry["head_epoch"]) for entry in head_history(folder)}
            _add_lines(folder / "heads.jsonl", "head_epoch", record.state.head_history, known)
        on_heads(record)

    return fit(
        experiment,
        data,
        source,
        start=start_of(checkpoints, world),
        initial=initial if initial.is_file() else None,
        report=report,
        report_heads=report_heads,
        stop=stop,
        device=device,
        world=world,
    )


def start_of(checkpoints: Path, world: World) -> Path | None:
    """The checkpoint all workers go on from: the newest that is whole, as worker 0 finds it; it drops damaged ones."""
    path = checkpoint.latest(checkpoints, drop=True) if world.rank == 0 else None
    if world.size == 1:
        return path
    epoch, head_epoch = world.first(checkpoint.numbers(path) if path is not None else (-1, -1))
    return checkpoints / checkpoint.name(epoch, head_epoch) if epoch >= 0 else None


def accuracy(folder: Path) -> float:
    """Validation accuracy of the last epoch kept in a folder; NaN if there is none."""
    entries = history(folder)
    return entries[-1].get("val/accuracy", math.nan) if entries else math.nan
