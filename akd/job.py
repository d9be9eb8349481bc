"""A run as a worker process carries it out: its experiment, data and teacher, found from its folder."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from akd import folder as run_folder
from akd.config import DataConfig, Experiment
from akd.config import load as load_experiment
from akd.data import TrainData
from akd.data import load as load_data
from akd.data import split as split_data
from akd.data.loader import held_out_batches
from akd.errors import AkdError, RunError
from akd.fit import EpochRecord
from akd.metrics import evaluate
from akd.teacher import LiveTeacher, TeacherSource
from akd.teacher.keep import load_student, load_teacher
from akd.world import ALONE, World

#: What training raises by itself, and would raise again: divergence, out of memory (a RuntimeError), a method's bug.
FAILURES = (AkdError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a run.

    Attributes:
        folder: the run's, made by :func:`akd.folder.create`.
        teacher: folder of the teacher's run.
        final: train on the validation images too, then meet the test images, once.
        every_student: keep the student of each epoch.
    """

    folder: str
    teacher: str | None = None
    final: bool = False
    every_student: bool = False


@lru_cache(maxsize=1)
def _data(config: DataConfig) -> TrainData:
    return split_data(config, load_data(config))


@lru_cache(maxsize=1)
def _teacher(folder: str, device: str) -> nn.Module:
    return load_teacher(Path(folder), device)


def teacher_source(experiment: Experiment, teacher: Path | str | None, device: str) -> TeacherSource | None:
    """The live teacher if the experiment's method needs one."""
    needs = experiment.method.needs
    if not needs:
        return None
    if teacher is None:
        raise ValueError(f"{experiment.method.title} needs a teacher")
    return LiveTeacher(_teacher(str(teacher), device), needs)


def default_device() -> str:
    """The GPU this process was given, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_job(
    job: Job,
    *,
    device: str | None = None,
    world: World = ALONE,
    on_ready: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train in the job's folder, from where it stands.

    Args:
        world: the workers of this run, all of which call this.
        on_ready: called when data and teacher are at hand.
        on_epoch, stop: see :func:`akd.fit.fit`.

    Returns:
        ``test/accuracy`` and ``test/loss`` of a final run that was not stopped; from worker 0 only.
    """
    folder, device = Path(job.folder), device or default_device()
    experiment = load_experiment(folder / "experiment.yaml", {}, strict=False)
    source = teacher_source(experiment, job.teacher, device)
    data = _data(experiment.data)
    on_ready()
    result = run_folder.train(
        folder,
        experiment,
        data.with_validation_joined() if job.final else data,
        source,
        device=device,
        world=world,
        on_epoch=on_epoch,
        stop=stop,
        every_student=job.every_student,
    )
    if not job.final or result.stopped or world.rank:
        return {}
    student = load_student(folder / "student", device)  # what is handed over is what is tested
    scores = evaluate(student, held_out_batches(data.dataset, device))
    facts = {"epoch": result.epochs_run, "test_accuracy": scores["accuracy"], "seed": experiment.train.seed}
    run_folder.export(folder / "student", student, experiment, data, facts)
    return {f"test/{k}": v for k, v in scores.items()}


def run_here(
    jobs: Sequence[Job],
    *,
    on_begin: Callable[[Job], None] = lambda job: None,
    on_epoch: Callable[[Job, int, dict[str, float]], None] = lambda job, epoch, metrics: None,
    on_end: Callable[[Job, dict[str, float]], None] = lambda job, results: None,
) -> None:
    """Carry out jobs in this process, one after the other; as :func:`akd.workers.carry` does on workers.

    Raises:
        RunError: a job failed, with the reason; those after it were not begun.
    """
    for job in jobs:
        on_begin(job)

        def report(record: EpochRecord, job: Job = job) -> None:
            on_epoch(job, record.epoch, record.metrics)

        try:
            results = run_job(job, on_epoch=report)
        except FAILURES as error:
            keep_traceback(Path(job.folder))
            raise RunError(reason(error)) from error
        on_end(job, results)


def reason(error: BaseException) -> str:
    """Why a run failed, in one line."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory; train.micro_batch makes a batch in parts ({line})"
    return line


def keep_traceback(folder: Path) -> None:
    """Write the exception being handled to ``error.txt``."""
    (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
