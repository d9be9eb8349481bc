"""The scheduler of a search with several objectives: trials are compared with those of the same architecture alone.

A scheduler knows one number, accuracy at some epoch. A student that is smaller is less accurate, more so early on, and
would be stopped in favour of large ones, though a search that asks for parameters or latency beside accuracy wants to
know how good small students become. Of trials of one architecture, which cost the same, the less accurate one cannot be
on the front: that is what is stopped. So each architecture has a scheduler of its own, and the savings are those of the
scheduler on as many trials as the architecture has. ``search.scheduler: none`` stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from akd.architectures import KEY
from akd.budget import Budget
from akd.config import Experiment
from akd.folder import Run
from akd.scheduler import StudyScheduler, _StudyTrials


class Apart(_StudyTrials, FIFOScheduler):
    """Hands each trial to the scheduler of its student; which trial starts next is decided over all of them.

    Args:
        make: a new scheduler.
        student: of a run that does not name one among its parameters.
    """

    def __init__(self, make: Callable[[], StudyScheduler], student: str):
        super().__init__()
        self._make, self._student = make, student
        self.each: dict[str, StudyScheduler] = {}
        self._of: dict[str, StudyScheduler] = {}

    def of(self, run: Run) -> StudyScheduler:
        """The scheduler of a run's student."""
        name = str(run.parameters.get(KEY, self._student))
        if name not in self.each:
            self.each[name] = self._make()
        return self.each[name]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        run = Run.read(Path(trial.config["folder"]))
        assert run is not None
        self._of[trial.trial_id] = self.of(run)
        self._of[trial.trial_id].on_trial_add(tune_controller, trial)

    def decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """What the scheduler of its student says."""
        return self._of[trial.trial_id].decide(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._of.pop(trial.trial_id).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._of[trial.trial_id].on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if (mine := self._of.pop(trial.trial_id, None)) is not None:
            mine.on_trial_remove(tune_controller, trial)


def by_objectives(
    experiment: Experiment, make: Callable[[], StudyScheduler], budget: Budget | None = None
) -> StudyScheduler | Apart:
    """The scheduler of an experiment: the one ``make`` gives, or with several objectives one for each student."""
    made = Apart(make, experiment.student.name) if len(experiment.search.objectives) > 1 else make()
    made.budget = budget
    return made
