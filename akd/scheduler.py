"""Tune's schedulers as a study needs them: ASHA and median stopping that can be interrupted, and none.

Whatever the number of trials; controls are never stopped, and what a rung lets through may still go over the budget.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from akd import folder as run_folder
from akd.budget import Budget
from akd.config import Experiment
from akd.pairs import LEAST_FOR_MEDIAN
from akd.rungs import rungs

#: What a trial reports: validation accuracy, the epoch it is of, and the device-seconds the epoch took.
METRIC, TIME, COST = "val_accuracy", "epoch", "device_s"


class _StudyTrials:
    """What a study asks of every scheduler, before those of Ray.

    It starts trials in the order they came, looking at those alone that have not ended: Ray's own goes through all
    trials there ever were, twice, at every report. It stops none but trials, and one that would go on over the budget.

    Attributes:
        budget: of the study; ``None`` sets no bound.
    """

    def __init__(self, *args: Any, **kw: Any):
        super().__init__(*args, **kw)
        self.budget: Budget | None = None
        self._live: dict[str, Trial] = {}

    def remember(self, key: str, entries: list[dict[str, float]]) -> None:
        """Enter what a run of an earlier session has shown, as if it had been reported here."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        self._live.pop(trial.trial_id, None)  # one that is tried again comes last
        self._live[trial.trial_id] = trial

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._live = {key: trial for key, trial in self._live.items() if not trial.is_finished()}
        for status in (Trial.PENDING, Trial.PAUSED):
            for trial in self._live.values():
                if trial.status == status:
                    return trial
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        known = TIME in result and METRIC in result
        folder = Path(trial.config["folder"])
        if self.budget is not None and known:
            self.budget.epoch(folder, int(result[TIME]), result.get(COST))
        if trial.config["kind"] != "trial":
            return TrialScheduler.CONTINUE
        action = self.decide(tune_controller, trial, result)
        if self.budget is not None and known and action == TrialScheduler.CONTINUE and not self.budget.goes_on(folder):
            return TrialScheduler.STOP
        return action

    def decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """What the rule says of a trial's result."""
        action: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        return action


class StudyFIFO(_StudyTrials, FIFOScheduler):
    """No trial is stopped."""


class StudyASHA(_StudyTrials, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) on validation accuracy by epoch.

    Ray's own forgets everything when a run is started afresh, and would prune controls. It also lets the first trials
    of a rung pass, who were compared with nobody: here what a trial had at its last rung is compared again at every
    epoch that follows, with all who have come there since.
    """

    def __init__(self, epochs: int, grace: int | None, eta: int):
        # max_t is a kill too: one more than the epochs, so that a finished trial leaves by itself.
        first = rungs(epochs, grace, eta)[0]
        self._keys: dict[Path, str] = {}
        super().__init__(
            time_attr=TIME, metric=METRIC, mode="max", max_t=epochs + 1, grace_period=first, reduction_factor=eta
        )

    def remember(self, key: str, entries: list[dict[str, float]]) -> None:
        """Enter the rungs that a run has passed, as if it had been reported here."""
        for milestone, recorded in self._brackets[0]._rungs:
            for entry in entries:
                if int(entry["epoch"]) == milestone and "val/accuracy" in entry:
                    recorded[key] = entry["val/accuracy"]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.config["kind"] != "trial":  # controls and confirmation runs are never stopped
            return
        folder = Path(trial.config["folder"])
        if (before := self._keys.get(folder, trial.trial_id)) != trial.trial_id:  # another of Tune's for the same run
            for _, recorded in self._brackets[0]._rungs:
                recorded.pop(before, None)
        self._keys[folder] = trial.trial_id
        # A trial handed out again reports its last epoch once more: that one is decided now, those before were.
        self.remember(trial.trial_id, run_folder.history(folder)[:-1])

    def decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ray's own rule, and what was let pass once more as it stands by now."""
        action = super().decide(tune_controller, trial, result)
        if action == TrialScheduler.CONTINUE and TIME in result and self._fell_behind(trial.trial_id, result[TIME]):
            return TrialScheduler.STOP
        return action

    def _fell_behind(self, key: str, epoch: int) -> bool:
        """True between two rungs if what the run had at the one before is no longer among the best of it."""
        bracket = self._brackets[0]
        milestone, recorded = next(((m, r) for m, r in bracket._rungs if m <= epoch), (epoch, {}))
        if milestone == epoch or key not in recorded or epoch + 1 >= self._max_t:  # decided just now, or at its end
            return False
        return bool(recorded[key] < bracket.cutoff(recorded))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if trial.config["kind"] != "trial":
            self._trial_info.pop(trial.trial_id, None)
            return
        super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._trial_info.pop(trial.trial_id, None)


def _name(trial: Trial) -> str:
    """Of the run, whichever of Tune's trials it is now."""
    return Path(trial.config["folder"]).name


@dataclass
class _Curve:
    """What a trial has reported: epochs, the last of them, their sum, the best."""

    epochs: int = 0
    last: int = 0
    total: float = 0.0
    best: float = -math.inf

    def add(self, epoch: int, value: float) -> None:
        if epoch > self.last:  # one that goes on reports its last epoch once more
            self.epochs, self.last = self.epochs + 1, epoch
            self.total, self.best = self.total + value, max(self.best, value)

    @property
    def mean(self) -> float:
        return self.total / self.epochs


@dataclass
class _Rung:
    """Running means of the trials that came here, in order; and whose they are."""

    means: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def enter(self, key: str, mean: float) -> None:
        if key not in self.keys and math.isfinite(mean):
            self.keys.add(key)
            insort(self.means, mean)

    @property
    def median(self) -> float:
        half = len(self.means) // 2
        return self.means[half] if len(self.means) % 2 else (self.means[half - 1] + self.means[half]) / 2


class StudyMedian(_StudyTrials, FIFOScheduler):
    """Median stopping (Golovin et al. 2017, Vizier, section 3.2.2), at rungs.

    A trial is stopped if its best accuracy so far is below the median, over the other trials that came to this rung, of
    the mean of their accuracies up to it. A rising curve is better than its mean: the rule stops few, and late.

    Ray's own forgets everything when a run is started afresh, goes through all reports there ever were at each, may
    pause trials, and would stop controls.
    """

    def __init__(self, epochs: int, grace: int | None, eta: int):
        super().__init__()
        self._rungs = {rung: _Rung() for rung in rungs(epochs, grace, eta) if rung < epochs}
        self._curves: dict[str, _Curve] = {}

    def remember(self, key: str, entries: list[dict[str, float]]) -> None:
        """Enter the rungs that a run has passed, as if it had been reported here."""
        self._follow(key, entries)
        self._curves.pop(key, None)

    def _follow(self, key: str, entries: list[dict[str, float]]) -> None:
        curve = self._curves[key] = _Curve()
        for entry in entries:
            if "val/accuracy" in entry:
                epoch = int(entry["epoch"])
                curve.add(epoch, entry["val/accuracy"])
                if epoch in self._rungs:
                    self._rungs[epoch].enter(key, curve.mean)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.config["kind"] == "trial":
            # A trial handed out again reports its last epoch once more: that one is decided now, those before were.
            self._follow(_name(trial), run_folder.history(Path(trial.config["folder"]))[:-1])

    def decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop at a rung, never between two."""
        if TIME not in result or METRIC not in result:
            return TrialScheduler.CONTINUE
        key, epoch = _name(trial), int(result[TIME])
        curve = self._curves.setdefault(key, _Curve())
        curve.add(epoch, float(result[METRIC]))
        rung = self._rungs.get(epoch)
        if rung is None or key in rung.keys:
            return TrialScheduler.CONTINUE
        enough = len(rung.means) >= LEAST_FOR_MEDIAN
        action = TrialScheduler.STOP if enough and curve.best < rung.median else TrialScheduler.CONTINUE
        rung.enter(key, curve.mean)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._curves.pop(_name(trial), None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._curves.pop(_name(trial), None)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._curves.pop(_name(trial), None)


StudyScheduler = StudyFIFO | StudyASHA | StudyMedian


def make_scheduler(experiment: Experiment, budget: Budget | None = None) -> StudyScheduler:
    """The scheduler an experiment names."""
    search, epochs = experiment.search, experiment.train.epochs
    made: StudyScheduler
    if search.scheduler == "none":
        made = StudyFIFO()
    elif search.scheduler == "median":
        made = StudyMedian(epochs, search.grace, search.eta)
    else:
        made = StudyASHA(epochs, search.grace, search.eta)
    made.budget = budget
    return made
