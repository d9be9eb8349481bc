"""One run without a search: a student trained as an experiment says, or its teacher alone."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from akd import checkpoint, cluster, notices
from akd import config as configuration
from akd import folder as run_folder
from akd.addresses import check_tracking
from akd.config import Experiment, SearchConfig
from akd.data import TrainData
from akd.errors import AkdError, AkdWarning, ExperimentError, Interrupted, RunError, is_full, many
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.job import Job, kept_keys
from akd.logged import address_of, default_uri, experiment_title, scrubbed, tracking_tag
from akd.mirror import Mirror, mirror_of, open_mirror
from akd.prepare import Prepared, check_output, checked, complete, default_name, placed, prepare, study_folder
from akd.provenance import note_data, origin
from akd.room import PATIENCE_S, out_of_room
from akd.session import Here, Session
from akd.sharing import Sharing, cache_folder, check_cache, sharing
from akd.space import Space
from akd.starting import Start, put
from akd.storage import StorageError
from akd.study import batch_sizes, resolved
from akd.summary import program, shown_path
from akd.teacher.cache import size_of
from akd.teacher.keep import Teacher
from akd.teacher.served import live_because
from akd.teaching import provide
from akd.terminal import Display, percent
from akd.tracking import Tracker


@dataclass(frozen=True)
class TrialResult:
    """One distilled student.

    Attributes:
        student: folder with ``student.safetensors`` and ``config.json``.
        accuracy: top-1 on the validation split (0..1).
        epochs_run: epochs trained.
        history: metrics of each epoch.
        folder: the run's own, under the output folder.
        mlflow: address and run id.
    """

    student: Path
    accuracy: float
    epochs_run: int
    history: list[dict[str, float]]
    folder: Path
    mlflow: dict[str, str]


def distil(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    name: str | None = None,
    output: str | Path = "runs",
    workers: int | None = 1,
    tracking_uri: str | None = None,
    tracking_later: bool = False,
    ray_address: str | None = None,
    storage: str | None = None,
    start: Start | None = None,
    display: Display | None = None,
) -> TrialResult:
    """Train one student (and its teacher, if there is none yet) as the experiment says; its space is not searched.

    Args:
        experiment: resolved, or a mapping or file to resolve.
        name: of the run; default from data, method and time.
        output: folder of all runs, teachers and the default MLflow store.
        workers: that share the batches, as a Ray Train job; 1 trains in this process without Ray, ``None`` takes a
            worker for each GPU or an even share of the CPUs.
        start: a student whose weights this one starts from; they are kept in the run's folder.
        tracking_uri, tracking_later, ray_address, storage, display: see :func:`akd.study.search`.

    Raises:
        ExperimentError: a mistake in the experiment; nothing was started or written.
        RunError: the training failed, with the reason.
        Interrupted: asked to stop; :func:`go_on` goes on.
    """
    full = resolved(experiment)
    folder = study_folder(Path(output).absolute(), default_name(full) if name is None else name, resume=False)
    open_threads = full.train.threads is None
    full = replace(complete(full), space={})
    mirror = open_mirror(storage, folder.parent)
    data = _check(full, workers, ray_address, mirror)
    if start is not None:
        start.check(full, data)
    if mirror.storage is not None and mirror.storage.exists(f"{folder.name}/run.json"):
        problem = f"exists already in {mirror.shown}; choose another --name"
        raise ExperimentError(problem, key="name", value=folder.name)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder.parent)
    try:
        check_tracking(uri, folder.parent, answers=not tracking_later)
    except ExperimentError as error:
        raise error.at(None if tracking_uri else "MLFLOW_TRACKING_URI") from None
    tags = tracking_tag(uri, folder.parent) | origin() | {"workers": str(workers or "all")} | mirror.tags()
    run = Run("single", folder.name, tags=tags)
    if open_threads:
        run.tags["threads"] = "open"
    if start is not None:
        run.tags |= start.tags
    try:
        put(folder, start)
        note_data(folder, full.data, data)
        run_folder.create(folder, full, run)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise ExperimentError(problem, key="output", value=str(folder.parent)) from None
    display = display or Display(full.train.epochs, 1, [])
    if start is not None and start.note:
        display.say(start.note, "yellow")
    return _train(full, data, folder, run, workers, uri, ray_address, mirror, display)


def go_on(
    name: str,
    *,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    display: Display | None = None,
) -> TrialResult:
    """Go on with a run of :func:`distil` that was interrupted or killed; arguments and errors as there."""
    mirror = mirror_of(name, Path(output).absolute(), storage)
    folder = study_folder(Path(output).absolute(), name, resume=True)
    run = Run.read(folder)
    assert run is not None
    if run.kind != "single":
        raise ExperimentError(f"is a {run.kind}; go on with 'akd search --resume {name}'", key="resume", value=name)
    full = configuration.load(folder / "experiment.yaml", {}, strict=False)
    said = run.tags.get("workers", "1")
    workers = None if said == "all" else int(said)
    data = _check(full, workers, ray_address, mirror)
    uri = address_of(run.tags.get("tracking"), folder.parent, tracking_uri)
    check_tracking(uri, folder.parent, answers=False)
    return _train(full, data, folder, run, workers, uri, ray_address, mirror, display)


def teach(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    output: str | Path = "runs",
    workers: int | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    display: Display | None = None,
) -> Teacher:
    """The experiment's teacher, trained if it is not kept already; arguments and errors as of :func:`distil`."""
    full = complete(resolved(experiment))
    mirror = open_mirror(storage, Path(output))
    data = _check(full, workers, ray_address, mirror)
    check_output(Path(output))
    display = display or Display(full.teacher.train.epochs, 0, [])
    with _session(full, workers, ray_address, mirror) as session:
        return provide(session, full, data, Path(output).absolute(), display)


def cache(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    passes: int | None = None,
    output: str | Path = "runs",
    workers: int | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    display: Display | None = None,
) -> Sharing:
    """Have the teacher's outputs kept ahead of a search, on all devices (and the teacher trained, if there is none).

    Args:
        passes: over the training images; default as many as a trial's epochs make.

    The other arguments and errors are as of :func:`distil`.

    Returns:
        What is kept, as the search that reads it will say.
    """
    full = complete(resolved(experiment))
    if passes is not None and (not isinstance(passes, int) or isinstance(passes, bool) or passes < 1):
        raise ExperimentError("must be a whole number of at least 1", key="passes", value=passes)
    mirror = open_mirror(storage, Path(output))
    data = _check(full, workers, ray_address, mirror)
    check_output(Path(output))
    ready = prepare(full) if full.space else Prepared(full, data, Space(()), {})
    shared, folder = sharing(ready), cache_folder(full, Path(output), mirror.shown)
    if not shared.views:
        why = next(iter(shared.live.values()), "its method learns from no teacher")
        raise ExperimentError(f"nothing of it can be kept: {why}", key="method", value=full.method.title)
    number = passes or full.train.epochs * full.train.epoch_factor
    number = min(number, full.teacher.cache.epochs or number)
    display = display or Display(number, 0, [])
    with _session(full, workers, ray_address, mirror) as session:
        teacher = provide(session, full, data, Path(output).absolute(), display)
        work = Path(output).absolute() / "cache"
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fill-", dir=work) as work_:
            keys = _fill(session, shared, teacher, folder, Path(work_), number, display)
            mirror.remove(Path(work_))
    here = folder.expanduser()
    left = min((len(list((here / key).glob("[0-9]*"))) for key in keys), default=number)
    if left < number and mirror.storage is None:
        budget = full.teacher.cache.budget
        display.say(
            f"only {left} of them had room within teacher.cache.budget ({budget}): give more, or fewer --passes"
        )
    return shared


def _fill(
    session: Session | Here, shared: Sharing, teacher: Teacher, folder: Path, work: Path, passes: int, display: Display
) -> set[str]:
    """The keys under which outputs are kept."""
    keep = tuple(sorted(shared.keep))
    jobs = []
    for number, experiment in enumerate(shared.views):
        run_folder.create(work / str(number), experiment, Run("cache", f"cache {number}"))
        job = Job(str(work / str(number)), str(teacher.folder), cache=str(folder), keep=keep, passes=passes)
        jobs.append(job)
    made, done = [0.0], [0]
    with display.bar("teacher's outputs", len(jobs) * passes) as advance:

        def on_epoch(job: Job, number: int, metrics: dict[str, float]) -> None:
            done[0] += 1
            made[0] += metrics["time/teacher_images"]
            advance(done[0], f"{made[0]:,.0f} images")

        session.carry(jobs, session.team(shared.views[0].train.batch_size), on_epoch=on_epoch)
    keys = {key for job in jobs if (noted := kept_keys(Path(job.folder))) for key in noted["keys"]}
    shared_storage = session.mirror.storage
    if shared_storage is not None:
        place, total = shared_storage.shown, sum(sum(shared_storage.names(f"cache/{k}").values()) for k in keys)
    else:
        place, total = shown_path(folder), sum(size_of(folder / key) for key in keys)
    size = f"{total / 1e6:.1f} MB under {many(len(keys), 'key')}"
    asked = f"{', '.join(keep)} of {passes} pass{'es' * (passes != 1)}"
    display.say(f"run on {made[0]:,.0f} images; {asked} in {place}: {size}")
    return keys


def _check(full: Experiment, workers: int | None, ray_address: str | None, mirror: Mirror) -> TrainData:
    with placed(full):
        data = checked(full)
        check_cache(full, mirror.output)
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise ExperimentError("must be a whole number of at least 1", key="workers", value=workers)
        if not _here(workers, ray_address):
            try:
                cluster.check(_search(full, workers), ray_address, batch_sizes(full), shared=mirror.shown)
            except ExperimentError as error:
                if error.key != "search.final_workers":
                    raise
                raise ExperimentError(error.problem, key="workers", value=workers) from None
    return data


def _here(workers: int | None, ray_address: str | None) -> bool:
    return workers == 1 and (ray_address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def _search(full: Experiment, workers: int | None) -> SearchConfig:
    """What the machines are asked for: there are no trials, so what trials take does not matter."""
    return SearchConfig(final_workers=workers)


def _session(
    full: Experiment, workers: int | None, ray_address: str | None, mirror: Mirror
) -> AbstractContextManager[Session | Here]:
    if _here(workers, ray_address):
        return nullcontext(Here(mirror))
    return Session(_search(full, workers), ray_address, mirror)


def _train(
    full: Experiment,
    data: TrainData,
    folder: Path,
    run: Run,
    workers: int | None,
    uri: str,
    ray_address: str | None,
    mirror: Mirror,
    display: Display | None,
) -> TrialResult:
    display = display or Display(full.train.epochs, 1, [])
    line = experiment_title(full.data.name, full.teacher.name, full.student.name)
    with _locked(folder):
        tracker = Tracker(
            uri,
            folder.parent,
            folder,
            line,
            keep=full.search.log_checkpoints,
            load=full.search.system_metrics and run.state != COMPLETE,
            fetch=lambda path, run: mirror.down(path, ended=False) if run.state == RUNNING else None,
            on_trouble=lambda text: display.say(text, "yellow"),
        )
        crowded, warned = False, notices.Reader(iter([folder, *folder.parent.glob("teachers/*")]))

        def news(path: Path, delay: float = 0.0) -> None:
            for line in warned.new(path):
                display.say(f"warning: {line}", "yellow")
            tracker.changed(path, delay)

        display.say(f"run {folder.name}: {line}, {full.method.title}, {len(data.train)} training images")
        try:
            if run.state == COMPLETE:
                display.say("it was finished already: nothing is trained again")
            else:
                run.state, run.ended, run.reason = RUNNING, None, None
                run.write(folder)
                mirror.up_all(folder)
                with _session(full, workers, ray_address, mirror) as session:
                    _carry(session, full, data, folder, run, display, news)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(f"stopped; go on with: {_resume_command(folder, mirror)}") from None
        except (RunError, OSError) as error:
            if crowded := is_full(error):
                raise AkdError(out_of_room(folder, _resume_command(folder, mirror), error)) from None
            if isinstance(error, OSError):
                raise
            run.end(folder, FAILED, str(error))
            raise RunError(f"{error} (see {shown_path(folder)}/error.txt)") from None
        finally:
            with contextlib.suppress(StorageError):
                mirror.up(folder, "run.json")
            tracker.changed(folder)
            if not tracker.close(PATIENCE_S if crowded else 60):
                display.say(f"MLflow at {scrubbed(uri)} did not take everything", "yellow")
        history = run_folder.history(folder)
        result = TrialResult(
            folder / "student",
            run_folder.accuracy(folder),
            int(history[-1]["epoch"]),
            history,
            folder,
            {"tracking_uri": scrubbed(uri), "run_id": tracker.run_id(folder)},
        )
    display.panel(f"{full.method.title}, {full.student.name}", _closing(result, full))
    return result


def _resume_command(folder: Path, mirror: Mirror) -> str:
    where = "" if folder.parent == Path("runs").absolute() else f" --output {shown_path(folder.parent)}"
    return f"{program()} train --resume {folder.name}{where}{mirror.flag()}"


def _carry(
    session: Session | Here,
    full: Experiment,
    data: TrainData,
    folder: Path,
    run: Run,
    display: Display,
    news: Callable[..., None],
) -> None:
    teacher = provide(session, full, data, folder.parent, display, news) if full.needs_teacher else None
    team = session.team(full.train.batch_size)
    if run.tags.pop("threads", None):  # left open, until it was known what a worker has
        full = replace(full, train=replace(full.train, threads=max(1, int(team.cpus))))
        run_folder.create(folder, full, run)
    job = Job(
        str(folder),
        str(teacher.folder) if teacher else None,
        every_student=full.search.log_checkpoints == "all",
        cache=_cache(full, folder.parent, session.mirror.shown, display),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AkdWarning)  # of damage: the run tells
        before = checkpoint.latest(folder / "checkpoints")
    if before:
        epoch, head_epoch = checkpoint.numbers(before)
        after = f"head epoch {head_epoch}" if head_epoch and not epoch else f"epoch {epoch} of {full.train.epochs}"
        display.say(f"goes on after {after}")
    shared = f" on {team.size} workers" if team.size > 1 else ""
    with display.bar(f"student {full.student.name}{shared}", full.train.epochs) as advance:

        def on_epoch(job: Job, epoch: int, metrics: dict[str, float]) -> None:
            advance(epoch, f"validation {percent(metrics.get('val/accuracy'))} %")
            news(folder, delay=2)

        session.carry([job], team, on_epoch=on_epoch)
    run.end(folder, COMPLETE)


def _cache(full: Experiment, output: Path, storage: str | None, display: Display) -> str | None:
    """Where the run finds its teacher's outputs, if that was asked for: alone it would keep them for nobody."""
    if full.teacher.cache.use != "on" or not full.needs_teacher:
        return None
    if (why := live_because(full)) is not None:
        display.say(f"the teacher runs in every step of {full.method.title}: {why}")
        return None
    found = cache_folder(full, output, storage)
    display.say(f"the teacher's outputs are kept in {shown_path(found)}")
    return str(found)


def _closing(result: TrialResult, full: Experiment) -> list[str]:
    student, data = shown_path(result.student), full.data.name
    place = f" --data-dir {shown_path(Path(full.data.dir))}" if full.data.dir and data != "digits" else ""
    return [
        f"validation {percent(result.accuracy)} % after {many(result.epochs_run, 'epoch')}",
        "",
        f"student   {student}/student.safetensors",
        f"test      {program()} evaluate --data {data}{place} --model {student}",
        f"MLflow    {program()} ui {result.folder.name}",
    ]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ExperimentError("is being trained by another process", key="name", value=folder.name) from None
