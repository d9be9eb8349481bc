"""The student of another run as what a single run starts from: kept in the run's folder, so that it can go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from akd.config import Experiment
from akd.data import TrainData
from akd.errors import ExperimentError
from akd.fit import build_student
from akd.folder import START
from akd.models import load_weights
from akd.teacher.keep import read_config


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        student: folder with ``student.safetensors`` and ``config.json``.
        key, value: how the user named it, for messages.
        tags: facts of the run that starts from it.
        note: what whoever starts from it should know.
    """

    student: Path
    key: str
    value: str
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def check(self, experiment: Experiment, data: TrainData) -> None:
        """Refuse a student that is not this experiment's, or of other images or classes.

        Raises:
            ExperimentError: it is; or its files are damaged.
        """
        try:
            config = read_config(self.student)
            model = config["model"]
            if model != experiment.student.name:
                raise ExperimentError(f"is a {model}, student.name is {experiment.student.name}")
            own = data.dataset
            theirs, mine = config.get("classes"), list(own.classes)
            if theirs is not None and theirs != mine:
                raise ExperimentError(f"tells {len(theirs)} classes apart, which are not those of {own.name}")
            mean, std = (list(config["normalise"][part]) for part in ("mean", "std"))
            if (mean, std) != (list(own.mean), list(own.std)):
                raise ExperimentError("was trained on images normalised in another way")
            load_weights(build_student(experiment, data), self.student / "student.safetensors")
        except (KeyError, TypeError) as error:
            problem = f"its student is not what akd hands over: {type(error).__name__}"
            raise ExperimentError(problem, key=self.key, value=self.value) from None
        except ExperimentError as error:
            raise ExperimentError(f"its student {error.problem}", key=self.key, value=self.value) from None


def put(folder: Path, start: Start | None) -> None:
    """Keep what a run starts from in its folder, before the file that says that the run is there."""
    place = folder / START
    shutil.rmtree(place, ignore_errors=True)  # of a run of this name that was killed before it was there
    if start is not None:
        place.mkdir(parents=True)
        for name in ("student.safetensors", "config.json"):
            shutil.copyfile(start.student / name, place / name)
