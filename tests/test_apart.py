"""With several objectives trials are stopped by others of the same student alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from akd import folder as run_folder
from akd.apart import Apart, by_objectives
from akd.config import Experiment, resolve
from akd.folder import Run
from akd.scheduler import StudyASHA, StudyFIFO, make_scheduler

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def experiment(objectives: str, scheduler: str = "asha") -> Experiment:
    return resolve({"train": {"epochs": 9}, "search": {"objectives": objectives, "scheduler": scheduler}})


def made(objectives: str, scheduler: str = "asha") -> Any:
    e = experiment(objectives, scheduler)
    return by_objectives(e, partial(make_scheduler, e))


def trial(folder: Path, number: int, student: str | None, kind: str = "trial") -> Any:
    path = folder / f"{number:05d}"
    run = Run(kind, f"{kind} {number}", number, {"student.name": student} if student else {})
    run_folder.create(path, resolve({}), run)
    config = {"kind": kind, "folder": str(path)}
    return SimpleNamespace(trial_id=f"t{number}", config=config, status="RUNNING", is_finished=lambda: False)


def report(scheduler: Any, one: Any, value: float, epoch: int = 1) -> str:
    found = scheduler.on_trial_result(None, one, {"epoch": epoch, "val_accuracy": value})
    assert isinstance(found, str)
    return found


def test_one_objective_has_one_scheduler() -> None:
    assert isinstance(made("accuracy"), StudyASHA)
    assert isinstance(made("accuracy", "none"), StudyFIFO)


def decisions(folder: Path, objectives: str) -> dict[str, list[str]]:
    """Six large students, each better than all small ones, and six small ones, in turn; what becomes of each."""
    scheduler, found = made(objectives), {"large": [], "small": []}  # type: ignore[var-annotated]
    for number in range(12):
        kind = "large" if number % 2 == 0 else "small"
        one = trial(folder, number, {"large": "wrn_40_2", "small": "resnet8"}[kind])
        scheduler.on_trial_add(None, one)
        found[kind].append(report(scheduler, one, (0.8 if kind == "large" else 0.3) + 0.01 * number))
    return found


def test_small_students_are_not_stopped_for_being_small(tmp_path: Path) -> None:
    alone = decisions(tmp_path / "alone", "accuracy")
    assert alone["small"] == [STOP] * 6  # what accuracy alone would do
    both = decisions(tmp_path / "both", "accuracy,parameters")
    assert both["small"] == both["large"] == [CONTINUE] * 6  # each is the best of its kind so far


def test_the_worse_of_the_same_student_is_stopped(tmp_path: Path) -> None:
    scheduler = made("accuracy,parameters")
    for number, value in enumerate([0.5, 0.6, 0.7]):
        one = trial(tmp_path, number, "resnet8")
        scheduler.on_trial_add(None, one)
        assert report(scheduler, one, value) == CONTINUE
    worse, other = trial(tmp_path, 3, "resnet8"), trial(tmp_path, 4, "resnet14")
    for one in (worse, other):
        scheduler.on_trial_add(None, one)
    assert report(scheduler, worse, 0.4) == STOP
    assert report(scheduler, other, 0.4) == CONTINUE
    assert sorted(scheduler.each) == ["resnet14", "resnet8"]


def test_trials_of_an_earlier_session_count_for_their_own_student(tmp_path: Path) -> None:
    scheduler = made("accuracy,parameters")
    assert isinstance(scheduler, Apart)
    for number, student in enumerate(["resnet8", "resnet14"]):
        own: Any = scheduler.of(Run("trial", f"trial {number}", number, {"student.name": student}))
        own.remember(f"{number:05d}", [{"epoch": 1, "val/accuracy": 0.5 if student == "resnet8" else 0.9}])
    small, large = trial(tmp_path, 2, "resnet8"), trial(tmp_path, 3, "resnet14")
    for one in (small, large):
        scheduler.on_trial_add(None, one)
    assert report(scheduler, small, 0.6) == CONTINUE
    assert report(scheduler, large, 0.6) == STOP


def test_a_run_that_names_no_student_has_the_experiments_own(tmp_path: Path) -> None:
    scheduler = made("accuracy,parameters")  # the default student is resnet8
    a, b = Run("trial", "a", 0, {}), Run("trial", "b", 1, {"student.name": "resnet8"})
    assert scheduler.of(a) is scheduler.of(b)


@pytest.mark.parametrize("name", ["asha", "none"])
def test_controls_end_and_trials_are_forgotten(tmp_path: Path, name: str) -> None:
    scheduler = made("accuracy,parameters", name)
    control, ended, removed = (trial(tmp_path, n, None, kind) for n, kind in enumerate(["control", "trial", "trial"]))
    for one in (control, ended, removed):
        scheduler.on_trial_add(None, one)
        assert report(scheduler, one, 0.1) == CONTINUE or name == "asha"
    assert report(scheduler, control, 0.0, 3) == CONTINUE  # never stopped
    for one in (control, ended):
        scheduler.on_trial_complete(None, one, {"epoch": 3, "val_accuracy": 0.2})
    scheduler.on_trial_error(None, removed)
    scheduler.on_trial_remove(None, removed)
    scheduler.on_trial_remove(None, removed)
    assert scheduler._of == {}


def test_the_next_to_start_is_chosen_over_all_students(tmp_path: Path) -> None:
    scheduler = made("accuracy,parameters")
    trials = [trial(tmp_path, n, student) for n, student in enumerate(["resnet8", "resnet14", "resnet8"])]
    for one in trials:
        one.status = "PENDING"
        scheduler.on_trial_add(None, one)
    for one in trials:
        assert scheduler.choose_trial_to_run(None) is one
        one.status = "RUNNING"
