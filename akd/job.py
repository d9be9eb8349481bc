"""A run as a worker process carries it out: its experiment, data and teacher, found from its folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from akd import folder as run_folder
from akd import notices, starts
from akd.checkpoint import write_json, write_text
from akd.config import DataConfig, Experiment
from akd.config import load as load_experiment
from akd.data import TrainData
from akd.data import load as load_data
from akd.data import split as split_data
from akd.data.cifar import prepare
from akd.data.dataset import data_dir
from akd.data.loader import held_out_batches
from akd.errors import AkdError, RunError
from akd.fill import fill
from akd.fit import EpochRecord
from akd.metrics import evaluate
from akd.storage import Storage, StorageError, WorkingCopy
from akd.teacher import LiveTeacher, TeacherSource
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.teacher.keep import load_student, load_teacher
from akd.teacher.served import live_because
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
        cache: folder of teachers' outputs; ``None`` asks the network in every step.
        keep: what to keep when the network runs anyway, for other runs; see :class:`akd.teacher.cached.CachedTeacher`.
        passes: train nothing, but have the outputs of so many passes kept.
        storage: where folders are that several nodes share, see :func:`akd.storage.admit`.
        top: folder of all runs on the node that steers; below it, things have the same names in the storage.
        session: of the study, see :mod:`akd.starts`; empty where nobody would begin the run again.
    """

    folder: str
    teacher: str | None = None
    final: bool = False
    every_student: bool = False
    cache: str | None = None
    keep: tuple[str, ...] = ()
    passes: int = 0
    storage: str | None = None
    top: str = ""
    session: str = ""

    def key(self, folder: str) -> str:
        """What a folder is called in the storage."""
        return Path(folder).relative_to(self.top).as_posix()


@lru_cache(maxsize=1)
def _data(config: DataConfig) -> TrainData:
    return split_data(config, load_data(config))


@lru_cache(maxsize=1)
def teacher_network(device: str, folder: str, storage: str | None, key: str) -> nn.Module:
    """The network of a teacher's run folder, in eval mode.

    Args:
        folder: where it is, if there is no storage.
        storage, key: where it is, if there is.
    """
    if storage is None:
        return load_teacher(Path(folder), device)
    with tempfile.TemporaryDirectory(prefix="akd-teacher-") as copy:
        Storage(storage).fetch(f"{key}/student", Path(copy) / "student")
        return load_teacher(Path(copy), device)


def teacher_source(experiment: Experiment, job: Job, device: str) -> TeacherSource | None:
    """The teacher if the experiment's method needs one: its kept outputs where these serve the run."""
    needs, cache = experiment.method.needs, experiment.teacher.cache
    if not needs:
        return None
    if job.teacher is None:
        raise ValueError(f"{experiment.method.title} needs a teacher")
    model = teacher_network(device, job.teacher, job.storage, job.key(job.teacher) if job.storage else "")
    if job.cache is None or live_because(experiment) is not None:
        return LiveTeacher(model, needs)
    shared = Storage(job.storage) if job.storage else None
    store, keep = Store(Path(job.cache).expanduser(), cache.bytes, shared), frozenset(job.keep)
    return CachedTeacher(model, needs, store, keep=keep, half=cache.dtype == "float16")


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
    with _working(job, world) as (folder, store), notices.kept(folder, keep=world.rank == 0):
        return _run(job, folder, store, device or default_device(), world, on_ready, on_epoch, stop)


@contextlib.contextmanager
def _working(job: Job, world: World) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder a run is trained in, and what to call when something new in it is to be kept."""
    if job.storage is None:
        yield Path(job.folder), lambda: None
        return
    with WorkingCopy(Storage(job.storage), job.key(job.folder)) as copy:
        yield copy.folder, copy.store if world.rank == 0 else lambda: None


def _run(
    job: Job,
    folder: Path,
    store: Callable[[], None],
    device: str,
    world: World,
    on_ready: Callable[[], None],
    on_epoch: Callable[[EpochRecord], None],
    stop: Callable[[], bool],
) -> dict[str, float]:
    """A job in a folder at hand; ``store`` after all that is to last."""
    if job.session and world.rank == 0:
        try:
            starts.begin(folder, job.session)
        finally:
            store()
    experiment = load_experiment(folder / "experiment.yaml", {}, strict=False)
    source = teacher_source(experiment, job, device)
    if job.storage is not None and experiment.data.name in ("cifar10", "cifar100"):
        prepare(experiment.data.name, data_dir(experiment.data))  # the node may be new
    data = _data(experiment.data)
    on_ready()
    if job.passes:
        assert isinstance(source, CachedTeacher)
        fill(experiment, data, source, job.passes, device=device, world=world, report=on_epoch, stop=stop)
        _note_keys(folder, source, world)
        store()
        return {}

    def noted(record: EpochRecord) -> None:
        _note_keys(folder, source, world)
        store()
        on_epoch(record)

    result = run_folder.train(
        folder,
        experiment,
        data.with_validation_joined() if job.final else data,
        source,
        device=device,
        world=world,
        on_epoch=noted,
        on_heads=lambda record: store(),
        stop=stop,
        every_student=job.every_student,
    )
    if not job.final or result.stopped or world.rank:
        return {}
    student = load_student(folder / "student", device)  # what is handed over is what is tested
    scores = evaluate(student, held_out_batches(data.dataset, device))
    facts = {"epoch": result.epochs_run, "test_accuracy": scores["accuracy"], "seed": experiment.train.seed}
    run_folder.export(folder / "student", student, experiment, data, facts)
    store()
    return {f"test/{k}": v for k, v in scores.items()}


def _note_keys(folder: Path, source: TeacherSource | None, world: World) -> None:
    """Write into a run's folder under which keys the outputs of its teacher are kept."""
    if world.rank == 0 and isinstance(source, CachedTeacher) and source.keys:
        found = {"folder": str(source.store.root), "keys": sorted(source.keys)}
        if kept_keys(folder) != found:
            write_json(folder / "cache.json", found)


def kept_keys(folder: Path) -> dict[str, Any] | None:
    """``folder`` of the cache and ``keys`` that a run used; ``None`` if it asked the network in every step."""
    try:
        found: dict[str, Any] = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


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
        except StorageError:
            raise
        except FAILURES as error:
            keep_trace(job, traceback.format_exc())
            raise RunError(reason(error)) from error
        on_end(job, results)


def reason(error: BaseException) -> str:
    """Why a run failed, in one line."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory; train.micro_batch makes a batch in parts ({line})"
    return line


def keep_trace(job: Job, trace: str) -> None:
    """Keep a failed run's stack trace as ``error.txt`` beside it, if there is room for it."""
    with contextlib.suppress(OSError, StorageError):
        if job.storage is not None:
            Storage(job.storage).put_bytes(trace.encode(), f"{job.key(job.folder)}/error.txt")
        else:
            write_text(Path(job.folder) / "error.txt", trace)
