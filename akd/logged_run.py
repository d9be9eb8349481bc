"""A run in MLflow as something to go on from: its student and its experiment, fetched into a folder of this machine.

What a tracking server holds was written by whoever may write to it. So files are asked for by name, weights are
safetensors and no pickle, and a name that stands for code of this machine (``module:factory``) is refused unless the
user said it as well.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from akd.addresses import check_tracking
from akd.errors import ExperimentError, reason
from akd.logged import default_uri, scrubbed
from akd.tracking_store import client_of, lasting

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Kinds of runs that train a network.
TRAINED = ("trial", "control", "confirm", "final", "single", "teacher")
_STUDENT = ("student/student.safetensors", "student/config.json")
_EXPERIMENT = "experiment.yaml"
_PATHS = ("dir", "weights")
_KNOWN_FAMILIES = ("torchvision", "timm")


@dataclass(frozen=True)
class LoggedRun:
    """A run of akd's in MLflow.

    Attributes:
        run_id: its id there.
        name: ``trial 3``.
        kind: one of :data:`TRAINED`.
        uri: address of the store.
        flag: how the user named it, for messages.
    """

    run_id: str
    name: str
    kind: str
    uri: str
    flag: str
    client: MlflowClient

    def student(self, folder: Path) -> Path:
        """Fetch the student into ``folder`` as akd hands one over.

        Raises:
            ExperimentError: the run has none, or its network is code of this machine.
        """
        from akd.teacher.keep import read_config

        self._need(_STUDENT, "no student: its study kept none of it in MLflow (search.log_checkpoints)")
        for name in _STUDENT:
            self._fetch(name, folder)
        try:
            model = read_config(folder / "student")["model"]
        except ExperimentError as error:
            raise self._mistake(f"its student {error.problem}") from None
        if stands_for_code(model):
            problem = f"its network is {model}, code of this machine; fetch student/ yourself and name the folder"
            raise self._mistake(problem)
        return folder / "student"

    def experiment(self, folder: Path, said: Collection[Any] = ()) -> Path:
        """Fetch the experiment into ``folder``, without its space: the run's values have the searched ones in place.

        Args:
            said: names that the user gave, too.

        Raises:
            ExperimentError: the run has none, or it names code of this machine.
        """
        from akd import yamlfile

        self._need((_EXPERIMENT,), "no experiment.yaml")
        path = self._fetch(_EXPERIMENT, folder)
        tree, _ = yamlfile.read(path)
        tree.pop("space", None)
        for name in _names(tree):
            if stands_for_code(name) and name not in said:
                problem = (
                    f"its experiment names {name}, code of this machine; say so with a flag, like --student {name}"
                )
                raise self._mistake(problem)
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    def _need(self, names: Collection[str], lack: str) -> None:
        folders = {name.rpartition("/")[0] for name in names}
        try:
            there = {item.path for f in folders for item in self.client.list_artifacts(self.run_id, f or None)}
        except Exception as error:  # whatever MLflow, or the storage behind it, raises
            raise self._mistake(f"its files cannot be listed: {self._why(error)}") from None
        if not set(names) <= there:
            raise self._mistake(f"has {lack}")

    def _fetch(self, name: str, folder: Path) -> Path:
        """One file, by its name; whatever else the store would send has no way in."""
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        side = folder / ".fetched"
        side.mkdir(exist_ok=True)
        try:
            found = Path(self.client.download_artifacts(self.run_id, name, str(side)))
            if found.is_symlink() or not found.is_file():
                raise self._mistake(f"{name} is no file")
            os.replace(found, place)
        except ExperimentError:
            raise
        except Exception as error:  # whatever MLflow, or the storage behind it, raises
            raise self._mistake(f"{name} cannot be fetched: {self._why(error)}") from None
        finally:
            shutil.rmtree(side, ignore_errors=True)
        return place

    def _why(self, error: Exception) -> str:
        return scrubbed(reason(error), self.uri)[:200]

    def _mistake(self, problem: str) -> ExperimentError:
        return ExperimentError(problem, key=self.flag, value=self.run_id)


def find(run_id: str, tracking_uri: str | None, output: Path, flag: str) -> LoggedRun:
    """A run that trained a network, by MLflow's id of it.

    Args:
        tracking_uri: default ``$MLFLOW_TRACKING_URI``, else the store under ``output``.
        flag: how the user named it, for messages.

    Raises:
        ExperimentError: no such run, none of akd's, none with a network; MLflow does not answer. Nothing is written.
    """
    output = output.absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(output)
    shown = scrubbed(uri)

    def mistake(problem: str) -> ExperimentError:
        return ExperimentError(problem, key=flag, value=run_id)

    try:
        check_tracking(uri, output)
    except ExperimentError as error:
        raise error.at(None if tracking_uri else "MLFLOW_TRACKING_URI") from None
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():  # MLflow would make it
        raise mistake(f"there is no such run: nothing was logged at {shown}")
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", run_id):
        raise mistake("is no id of an MLflow run, which are 32 letters and digits")
    client = client_of(uri)
    try:
        found = client.get_run(run_id)
    except Exception as error:  # whatever MLflow or the network raises
        if lasting(error):
            raise mistake(f"there is no such run at {shown}") from None
        raise mistake(f"{shown} cannot be asked: {scrubbed(reason(error), uri)[:200]}") from None
    tags = found.data.tags
    kind = tags.get("akd.kind")
    if found.info.lifecycle_stage != "active":
        raise mistake(f"this run at {shown} was deleted")
    if kind is None:
        raise mistake(f"is no run of akd's: it lacks the tag akd.kind ({shown})")
    if kind not in TRAINED:
        raise mistake(f"is the run of a {kind}, which has no network of its own; name one of {', '.join(TRAINED)}")
    return LoggedRun(run_id, found.info.run_name or run_id, kind, uri, flag, client)


def stands_for_code(name: object) -> bool:
    """True of ``module:factory``, which is imported and called; the names of libraries akd knows are looked up."""
    return isinstance(name, str) and ":" in name and name.partition(":")[0] not in _KNOWN_FAMILIES


def _names(tree: Any) -> list[str]:
    """All texts of an experiment that could be names: keys, and values but for paths."""
    if isinstance(tree, dict):
        return [name for k, value in tree.items() for name in [str(k), *([] if str(k) in _PATHS else _names(value))]]
    if isinstance(tree, list):
        return [name for value in tree for name in _names(value)]
    return [tree] if isinstance(tree, str) else []
