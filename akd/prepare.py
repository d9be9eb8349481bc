"""Everything that can be said against a study before it starts."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from akd import config as configuration
from akd.config import Experiment
from akd.data import TrainData
from akd.data import load as load_data
from akd.data import split as split_data
from akd.data.dataset import data_dir
from akd.errors import ExperimentError, near
from akd.fit import build_student, check_data
from akd.folder import Run
from akd.space import Space, parse
from akd.teacher.keep import build as build_teacher


@dataclass(frozen=True)
class Prepared:
    """An experiment that has passed every check that needs no training."""

    experiment: Experiment
    data: TrainData
    space: Space
    controls: dict[str, Experiment]

    @property
    def wants_teacher(self) -> bool:
        """True if any run of the study asks for a teacher."""
        names = [e.needs_teacher for e in (self.experiment, *self.controls.values())]
        return any(names)


def prepare(experiment: Experiment) -> Prepared:
    """Check an experiment as far as that goes without training, and fill in what was left open.

    Raises:
        ExperimentError: anything a user can mend.
    """
    search, weights = experiment.search, experiment.teacher.weights
    experiment = replace(
        experiment,
        data=replace(experiment.data, dir=str(data_dir(experiment.data))),
        search=replace(search, champion_seeds=search.champion_seeds or (2 if experiment.data.name == "digits" else 3)),
        train=replace(
            experiment.train,
            threads=experiment.train.threads or max(1, int((search.cpus_per_trial or 1) / search.workers_per_trial)),
        ),
        teacher=replace(experiment.teacher, weights=str(Path(weights).expanduser().absolute()) if weights else None),
    )
    data = split_data(experiment.data, load_data(experiment.data))
    space = parse(experiment)
    try:
        build_student(experiment, data)
    except (ExperimentError, TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, ExperimentError) else str(error)
        name, where = experiment.student.name, experiment.origins.of("student.name")
        raise ExperimentError(problem, key="student", value=name, where=where) from None
    build_teacher(experiment, data)
    check_data(experiment, data)
    if experiment.teacher.weights is None:
        try:
            check_data(replace(experiment, train=experiment.teacher.train), data)
        except ExperimentError as error:
            key, value = "teacher.train.batch_size", experiment.teacher.train.batch_size
            raise ExperimentError(error.problem, key=key, value=value, where=experiment.origins.of(key)) from None
    for p in space.searched:
        if p.key == "train.batch_size":
            check_data(experiment.with_values({p.key: max(p.extremes())}), data)
    controls = {}
    for name in ("none", "kd"):
        tree = experiment.to_dict() | {"method": name}
        controls[name] = configuration.resolve(tree, strict=False)
    return Prepared(experiment, data, space, controls)


def default_name(experiment: Experiment) -> str:
    """``digits-kd-20260131-093000``: data, method, time."""
    data = re.sub(r"\W+", "-", experiment.data.name)
    return f"{data}-{experiment.method.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def study_folder(output: Path, name: str, *, resume: bool) -> Path:
    """The folder of a study, checked: new for a new one, there for one that goes on.

    Raises:
        ExperimentError: malformed or taken name, nothing to resume, folder not writable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in ("artifacts", "teachers"):
        raise ExperimentError("must be letters, digits, '.', '_' and '-', and no reserved word", key="name", value=name)
    folder = output / name
    if resume:
        if Run.read(folder) is None:
            names = [p.parent.name for p in output.glob("*/run.json")]
            hint = near(name, names) or (f", there are {', '.join(sorted(names))}" if names else "")
            raise ExperimentError(f"there is no study of this name in {output}{hint}", key="resume", value=name)
        return folder
    # A process killed in its first moment leaves a folder without a run: nothing to go on with, nothing to lose.
    left = folder.is_dir() and all(p.name == "experiment.yaml" or p.name.startswith(".") for p in folder.iterdir())
    if folder.exists() and not left:
        raise ExperimentError(
            f"exists already in {output}; go on with 'akd search --resume {name}' or choose another --name",
            key="name",
            value=name,
        )
    parent = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExperimentError(
            f"cannot be written: {parent} is no folder akd may write to", key="output", value=str(output)
        )
    return folder
