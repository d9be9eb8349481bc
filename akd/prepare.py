"""Everything that can be said against a study before it starts."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from akd import config as configuration
from akd import forms, pairs
from akd.config import Experiment
from akd.data import TrainData
from akd.data import load as load_data
from akd.data import split as split_data
from akd.data.dataset import data_dir
from akd.errors import ExperimentError, near
from akd.fit import build_student, check_data, check_workers
from akd.folder import Run
from akd.names import check_name
from akd.space import Space, parse
from akd.teacher.keep import build as build_teacher

#: What is written into a study's folder before the run itself is: without one it never began.
_FIRST = {"experiment.yaml", "data.json", "costs.json", "warm_start.json"}


@dataclass(frozen=True)
class Prepared:
    """An experiment that has passed every check that needs no training.

    Attributes:
        space: without students that are known to cost too much.
        controls: name -> the fixed runs.
        costs: student -> cost -> figure, see :mod:`akd.costs`; filled in by :mod:`akd.architectures`.
        left_out: student -> the constraint it breaks.
    """

    experiment: Experiment
    data: TrainData
    space: Space
    controls: dict[str, Experiment]
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def wants_teacher(self) -> bool:
        """True if any run of the study asks for a teacher."""
        names = [e.needs_teacher for e in (self.experiment, *self.controls.values())]
        return any(names)


def complete(experiment: Experiment) -> Experiment:
    """The experiment with everything filled in that was left open, and folders and files as whole paths."""
    search, weights = experiment.search, experiment.teacher.weights
    seeds = 2 if experiment.data.name == "digits" else 3
    return replace(
        experiment,
        data=replace(experiment.data, dir=str(data_dir(experiment.data))),
        search=replace(
            search,
            champion_seeds=search.champion_seeds or seeds,
            confirm_seeds=(search.confirm_seeds or seeds) if search.confirm > 1 else None,
        ),
        train=replace(
            experiment.train,
            threads=experiment.train.threads or max(1, int((search.cpus_per_trial or 1) / search.workers_per_trial)),
        ),
        teacher=replace(experiment.teacher, weights=str(Path(weights).expanduser().absolute()) if weights else None),
    )


def prepare(experiment: Experiment) -> Prepared:
    """Check an experiment as far as that goes without training, and fill in what was left open.

    Raises:
        ExperimentError: anything a user can mend; with the place it was written at.
    """
    experiment = complete(experiment)
    with placed(experiment):
        space = parse(experiment)
        pairs.check(experiment, space)
        data = checked(experiment, space)
        check_workers(experiment, experiment.search.workers_per_trial)
        for p in space.searched:
            if p.key == "train.batch_size" and (most := max(p.extremes())) > len(data.train):
                problem = f"must be at most {len(data.train)}, the number of training images"
                raise ExperimentError(problem, key=f"space.{p.key}", value=most)
            if p.key == "train.batch_size" and (least := min(p.extremes())) < experiment.search.workers_per_trial:
                problem = f"must be at least {experiment.search.workers_per_trial}, one image for each worker"
                raise ExperimentError(problem, key=f"space.{p.key}", value=least)
    controls = {}
    for name in ("none", "kd"):
        tree = experiment.to_dict() | {"method": name}
        controls[name] = configuration.resolve(tree, strict=False)
    return Prepared(experiment, data, space, controls)


@contextlib.contextmanager
def placed(experiment: Experiment) -> Iterator[None]:
    """Name the file and line, or the flag, in a mistake that is found by somebody who does not know it."""
    try:
        yield
    except ExperimentError as error:
        raise error.at(experiment.origins.of(error.key) if error.key else None) from None


def checked(experiment: Experiment, space: Space | None = None) -> TrainData:
    """The data of an experiment whose networks, weights, batches and method fit them, whatever its space draws.

    Raises:
        ExperimentError: they do not, or files are missing or damaged.
    """
    data = split_data(experiment.data, load_data(experiment.data))
    try:
        student = build_student(experiment, data)
    except (ExperimentError, TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, ExperimentError) else str(error)
        origins, name = experiment.origins, experiment.student.name
        where = origins.of("student.name") or origins.of("student")
        raise ExperimentError(problem, key="student", value=name, where=where) from None
    builder = forms.Builder(experiment, data, student, build_teacher(experiment, data))
    builder.build(experiment)
    if space is not None:
        forms.check(space, experiment, builder)
    check_data(experiment, data)
    if experiment.teacher.weights is None:
        try:
            check_data(replace(experiment, train=experiment.teacher.train), data)
        except ExperimentError as error:
            key, value = "teacher.train.batch_size", experiment.teacher.train.batch_size
            raise ExperimentError(error.problem, key=key, value=value, where=experiment.origins.of(key)) from None
    return data


def default_name(experiment: Experiment) -> str:
    """``digits-kd-20260131-093000``: data, method, time."""
    data = re.sub(r"\W+", "-", experiment.data.name)
    return f"{data}-{experiment.method.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def study_folder(output: Path, name: str, *, resume: bool) -> Path:
    """The folder of a study, checked: new for a new one, there for one that goes on.

    Raises:
        ExperimentError: malformed or taken name, nothing to resume, folder not writable.
    """
    key = "resume" if resume else "name"
    check_name(name, key)
    try:
        if (output / name).is_symlink():
            problem = f"is a link in {output}, which could lead anywhere; name a folder that lies there itself"
            raise ExperimentError(problem, key=key, value=name)
        return _folder_to_go_on(output, name) if resume else _new_folder(output, name)
    except (OSError, ValueError) as error:
        if isinstance(error, ExperimentError):
            raise
        problem = f"cannot be {'read' if resume else 'written'}: {getattr(error, 'strerror', None) or error}"
        raise ExperimentError(problem, key="output", value=str(output)) from None


def _folder_to_go_on(output: Path, name: str) -> Path:
    folder = output / name
    try:
        if Run.read(folder) is None:
            names = [p.parent.name for p in output.glob("*/run.json")]
            hint = near(name, names) or (f", there are {', '.join(sorted(names))}" if names else "")
            raise ExperimentError(f"there is no study of this name in {output}{hint}", key="resume", value=name)
    except (ValueError, TypeError) as error:
        if isinstance(error, ExperimentError):
            raise
        problem = f"{folder / 'run.json'} is damaged; the study cannot go on"
        raise ExperimentError(problem, key="resume", value=name) from None
    return folder


def _new_folder(output: Path, name: str) -> Path:
    folder = output / name
    # A process killed in its first moment leaves a folder without a run: nothing to go on with, nothing to lose.
    left = folder.is_dir() and all(p.name in _FIRST or p.name.startswith(".") for p in folder.iterdir())
    if folder.exists() and not left:
        run = None
        with contextlib.suppress(ValueError, TypeError):  # damaged: the command says so
            run = Run.read(folder)
        verb = {"study": "search", "comparison": "compare"}.get(run.kind if run else "study", "train")
        raise ExperimentError(
            f"exists already in {output}; go on with 'akd {verb} --resume {name}' or choose another --name",
            key="name",
            value=name,
        )
    check_output(output)
    return folder


def check_output(output: Path, key: str = "output") -> None:
    """Refuse a folder (for all studies, or what else ``key`` names) that cannot be made or written to.

    Raises:
        ExperimentError: it, or the nearest folder above that is there, is no folder to write to.
    """
    parent = next(p for p in (output, *output.absolute().parents) if p.exists() or p.is_symlink())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExperimentError(f"cannot be written: {parent} is no folder akd may write to", key=key, value=str(output))
