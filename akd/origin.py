"""Where a student came from: its folder, the run that trained it, the study whose champion it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akd import config as configuration
from akd import folder as run_folder
from akd.config import Experiment
from akd.errors import ExperimentError, reason
from akd.folder import Run
from akd.methods import hosts
from akd.provenance import sha256
from akd.result import StudyResult
from akd.teacher.keep import read_config


@dataclass(frozen=True)
class Origin:
    """A student on disk and what is known of its making; what is not there is ``None``.

    Attributes:
        folder: ``student.safetensors`` and ``config.json``.
        config: the latter.
        digest: SHA-256 of the former.
        run, experiment, epochs: of the run that trained it: what it is, its settings, its finished epochs.
        study, result: whose champion it is; without a result the study has not ended.
        experiment_digest: SHA-256 of the study's ``experiment.yaml``, else of the run's.
    """

    folder: Path
    config: dict[str, Any]
    digest: str
    run: Run | None = None
    experiment: Experiment | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    study: Run | None = None
    result: StudyResult | None = None
    experiment_digest: str | None = None

    @property
    def default_target(self) -> Path:
        """Where it is exported to: beside the student's folder, for a study or a run inside its own."""
        return self.folder.parent / "export"

    @property
    def kind(self) -> str:
        """``champion``, or as :class:`akd.folder.Run` says; empty where nothing is known."""
        return "champion" if self.study else self.run.kind if self.run else ""

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the logits."""
        return [str(c) for c in self.config.get("classes") or range(self.config["num_classes"])]

    @property
    def data(self) -> str | None:
        """Name of the data set."""
        return self.experiment.data.name if self.experiment else None

    @property
    def teacher(self) -> str | None:
        """Name of the teacher's network."""
        return self.experiment.teacher.name if self.experiment else None

    @property
    def taught(self) -> bool:
        """True if a teacher was asked for anything."""
        if self.experiment is not None:
            return self.experiment.needs_teacher
        host = ((self.config.get("method") or {}).get("host") or {}).get("name", "none")
        return host in hosts and host != "none"

    @property
    def rounded(self) -> bool:
        """True if the teacher's outputs came from a cache in half precision."""
        e = self.experiment
        passes = self.result.teacher_passes if self.result else {}
        return e is not None and self.taught and e.teacher.cache.dtype == "float16" and bool(passes.get("keys"))

    @property
    def test_accuracy(self) -> float | None:
        """Of these very weights (0..1), if they met the test images."""
        found = self.config.get("test_accuracy")
        if found is None and self.run is not None:
            found = self.run.results.get("test/accuracy")
        return None if found is None else float(found)


def read_run(folder: Path) -> Run | None:
    """``run.json`` of a folder; ``None`` if there is none.

    Raises:
        ExperimentError: it is damaged.
    """
    try:
        return Run.read(folder)
    except (OSError, ValueError, TypeError) as error:
        problem = f"cannot be read: {reason(error)}"
        raise ExperimentError(problem, key="run", value=str(folder / "run.json")) from None


def origin_of(folder: Path) -> Origin:
    """All that is known of the student in ``folder``.

    Raises:
        ExperimentError: weights or ``config.json`` are missing or damaged, or what lies beside them is damaged.
    """
    config = read_config(folder)
    weights = folder / "student.safetensors"
    try:
        digest = sha256(weights)
    except OSError as error:
        raise ExperimentError(f"cannot be read: {error.strerror}", key="student", value=str(weights)) from None
    if digest is None:
        raise ExperimentError("there is no such file", key="student", value=str(weights))
    own = read_run(folder.parent)
    if own is None:
        return Origin(folder, config, digest)
    if own.kind != "study":
        return Origin(folder, config, digest, **_trained(folder.parent), experiment_digest=_digest(folder.parent))
    if folder.name != "champion":
        return Origin(folder, config, digest)
    study, seed = folder.parent, config.get("seed")
    result = _result(study)
    if result is not None and result.champion["test"]["accuracy"].get(str(seed)) != config.get("test_accuracy"):
        result = None  # of another champion: the study went on since
    trained = _trained(study / "finals" / f"champion-seed{seed}")
    return Origin(folder, config, digest, **trained, study=own, result=result, experiment_digest=_digest(study))


def _trained(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    if run is None:
        return {}
    experiment = configuration.load(folder / "experiment.yaml", {}, strict=False)
    return {"run": run, "experiment": experiment, "epochs": run_folder.history(folder)}


def _digest(folder: Path) -> str | None:
    return sha256(folder / "experiment.yaml")


def _result(study: Path) -> StudyResult | None:
    try:
        return StudyResult.read(study)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"cannot be read: {reason(error)}"
        raise ExperimentError(problem, key="result", value=str(study / "result.json")) from None
