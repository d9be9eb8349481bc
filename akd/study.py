"""A search as it is asked for: begun, or gone on with; what can be known before it starts is checked before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from akd import architectures, cluster, costs, more, objectives, spaces, started, warm
from akd import config as configuration
from akd import folder as run_folder
from akd.addresses import check_tracking
from akd.config import Experiment
from akd.errors import ExperimentError
from akd.folder import Run
from akd.logged import address_of, default_uri, tracking_tag
from akd.mirror import Mirror, mirror_of, open_mirror
from akd.places import share
from akd.prepare import Prepared, complete, default_name, placed, prepare, study_folder
from akd.provenance import cpu, note_data, origin
from akd.result import StudyResult
from akd.running import RunningStudy
from akd.sharing import check_cache
from akd.terminal import Display


def search(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    name: str | None = None,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    tracking_later: bool = False,
    ray_address: str | None = None,
    storage: str | None = None,
    display: Display | None = None,
    warm_start: str | Path | Sequence[str | Path] = (),
) -> StudyResult:
    """Search for the best way to distil, train the winner, and say by how much it wins.

    Args:
        experiment: resolved, or a mapping or file to resolve.
        name: of the study; default from data, method and time.
        output: folder of all studies, teachers and the default MLflow store.
        tracking_uri: MLflow address; default ``$MLFLOW_TRACKING_URI``, else a sqlite file under ``output``.
        tracking_later: start even if MLflow does not answer now; it is filled in when it does.
        ray_address: default ``$RAY_ADDRESS``, else a private local Ray.
        storage: what several nodes share, as ``s3://BUCKET/FOLDER``; default ``$AKD_STORAGE``.
        display: where progress is shown; default the terminal.
        warm_start: earlier studies whose best configurations are tried first, see :func:`akd.warm.plan`.

    Raises:
        ExperimentError: a mistake in the experiment; nothing was started or written.
        Interrupted: asked to stop; :func:`resume` goes on.
        AkdError: the search could not be finished.
    """
    ready, folder, uri, mirror = check(
        experiment,
        name=name,
        output=output,
        tracking_uri=tracking_uri,
        tracking_later=tracking_later,
        ray_address=ray_address,
        storage=storage,
    )
    found(ready, folder, uri, mirror, first=planned(ready, warm_start, mirror))
    return RunningStudy(ready, folder, uri, ray_address, mirror, display).run()


def found(
    ready: Prepared,
    folder: Path,
    uri: str,
    mirror: Mirror,
    tags: Mapping[str, str] | None = None,
    first: warm.Plan | None = None,
) -> None:
    """Make the folder of a study that has passed :func:`check`; from then on :func:`resume` can go on with it.

    Args:
        tags: more that the study is to note of itself.
        first: what it tries first.

    Raises:
        ExperimentError: another machine steers a study of this name, or the folder cannot be written.
    """
    name, own = folder.name, tracking_tag(uri, folder.parent) | origin() | {"cpu": cpu()} | mirror.tags()
    if (students := architectures.title(ready.experiment)) != ready.experiment.student.name:
        own |= {"students": students}
    own |= first.tags() if first is not None else {}
    if mirror.storage is not None and mirror.storage.exists(f"{name}/run.json"):
        go_on = f"akd search --resume {name} --storage ..."
        problem = f"exists already in {mirror.shown}; go on with '{go_on}' or choose another --name"
        raise ExperimentError(problem, key="name", value=name)
    try:
        started.keep(folder, ready.experiment)
        note_data(folder, ready.experiment.data, ready.data)
        costs.keep(folder, ready.costs)
        if first is not None:
            first.keep(folder)
        run_folder.create(folder, ready.experiment, Run("study", name, tags={**own, **(tags or {})}))
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise ExperimentError(problem, key="output", value=str(folder.parent)) from None
    mirror.up_all(folder)


def check(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    name: str | None = None,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    tracking_later: bool = False,
    ray_address: str | None = None,
    storage: str | None = None,
) -> tuple[Prepared, Path, str, Mirror]:
    """Everything that can be said against a search before it starts; writes nothing. Arguments as in :func:`search`.

    Returns:
        What would be searched, the study's folder, the MLflow address, and what nodes share.
    """
    full = resolved(experiment)
    folder = study_folder(Path(output).absolute(), default_name(full) if name is None else name, resume=False)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder.parent)
    local = (ray_address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    if local:  # more workers than the machine holds are told before what they would need of each batch
        with placed(full):
            share(full.search, [cluster.machine()])
    ready = prepare(full)
    mirror = open_mirror(storage, folder.parent)
    with placed(full):
        check_cache(full, folder.parent)
        cluster.check(full.search, ray_address, batch_sizes(full), shared=mirror.shown)
    try:
        check_tracking(uri, folder.parent, answers=not tracking_later)
    except ExperimentError as error:
        raise error.at(None if tracking_uri else "MLFLOW_TRACKING_URI") from None
    ready = architectures.priced(ready)  # last: a forward pass of each student
    # What a constraint on latency leaves is known before anything is written, where trials run in this very place.
    if local and not cluster.machine()["GPU"] and objectives.timed(full.search, bounded=True):
        ready = architectures.clocked(ready)
    return ready, folder, uri, mirror


def planned(ready: Prepared, warm_start: str | Path | Sequence[str | Path], mirror: Mirror) -> warm.Plan:
    """What a new study tries first."""
    asked = [warm_start] if isinstance(warm_start, (str, Path)) else warm_start
    if asked and ready.experiment.search.sampler == "grid":
        problem = "cannot go with a grid, which has every value of its own; leave it out, or take another --sampler"
        raise ExperimentError(problem, key="--warm-start", value=str(asked[0]))
    return warm.plan(asked, ready.space, ready.experiment.search.trials, mirror)


def resume(
    name: str,
    *,
    experiment: Experiment | Mapping[str, Any] | str | Path | None = None,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    display: Display | None = None,
    add_trials: int | None = None,
) -> StudyResult:
    """Go on with a study that was interrupted or killed, or with one that has ended and gets more trials.

    Args:
        experiment: what the study is thought to be; another than it was started with is refused.
        storage: as the study was started with; a study that another machine started is found there.
        add_trials: how many more trials it is to have. A winner that is another then gets final runs of its own, which
            meet the test images again.

    The other arguments and errors are as in :func:`search`, but an MLflow that is away is waited for.
    """
    number = None if add_trials is None else more.check(add_trials)
    mirror = mirror_of(name, Path(output).absolute(), storage)
    folder = study_folder(Path(output).absolute(), name, resume=True)
    more.catch_up(folder, mirror)
    full = configuration.load(folder / "experiment.yaml", {}, strict=False)
    started.compare(folder, full, full)
    if experiment is not None:
        given = resolved(experiment)
        started.compare(folder, complete(given), given, beside=True)
    run = Run.read(folder)
    assert run is not None
    if run.kind != "study":
        verb = "compare" if run.kind == "comparison" else "train"
        problem = f"is a {run.kind}{' run' * (verb == 'train')}; go on with 'akd {verb} --resume {name}'"
        raise ExperimentError(problem, key="resume", value=name)
    uri = address_of(run.tags.get("tracking"), folder.parent, tracking_uri)
    ready = prepare(full)
    with placed(full):
        cluster.check(full.search, ray_address, batch_sizes(full), fewer=True, shared=mirror.shown)
    check_tracking(uri, folder.parent, answers=False)
    ready = architectures.priced(ready, costs.kept(folder))
    if number is not None:
        total = more.add(folder, full, number, mirror)
        ready = replace(ready, experiment=more.with_trials(ready.experiment, total))
    study = RunningStudy(ready, folder, uri, ray_address, mirror, display)
    if number is not None:
        study.display.say(more.words(number, total))
    return study.run()


def batch_sizes(experiment: Experiment) -> list[int]:
    """Of the runs that take everything there is."""
    return [experiment.train.batch_size, experiment.teacher.train.batch_size]


def resolved(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    if isinstance(experiment, Experiment):
        return experiment
    if isinstance(experiment, Mapping):
        return configuration.resolve(experiment)
    if not isinstance(experiment, (str, Path)):
        problem = f"must be an Experiment, a mapping or a file, not a {type(experiment).__name__}"
        raise ExperimentError(problem, key="experiment")
    return configuration.load(spaces.find(str(experiment)), {})


__all__ = ["Prepared", "prepare", "resume", "search"]
