"""Tune's schedulers as a study needs them: ASHA that can be interrupted, and none, whatever the number of trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from akd import folder as run_folder
from akd.config import Experiment

METRIC, TIME = "val_accuracy", "epoch"


def rungs(epochs: int, grace: int | None, eta: int) -> list[int]:
    """Epoch counts at which ASHA decides: grace * eta^k, up to ``epochs``; default grace max(1, epochs // 9)."""
    first = min(grace or max(1, epochs // 9), epochs)
    found = [first]
    while found[-1] * eta <= epochs:
        found.append(found[-1] * eta)
    return found


class _LiveTrials:
    """Starts trials in the order they came, looking at those alone that have not ended.

    Ray's own goes through all trials there ever were, twice, at every report.
    """

    def __init__(self, *args: Any, **kw: Any):
        super().__init__(*args, **kw)
        self._live: dict[str, Trial] = {}

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


class StudyFIFO(_LiveTrials, FIFOScheduler):
    """No trial is stopped."""


class StudyASHA(_LiveTrials, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) on validation accuracy by epoch.

    Ray's own forgets everything when a run is started afresh, and would prune controls.
    """

    def __init__(self, epochs: int, grace: int | None, eta: int):
        # max_t is a kill too: one more than the epochs, so that a finished trial leaves by itself.
        first = rungs(epochs, grace, eta)[0]
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
        # A trial handed out again reports its last epoch once more: that one is decided now, those before were.
        entries = run_folder.history(Path(trial.config["folder"]))
        self.remember(trial.trial_id, entries[:-1])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["kind"] != "trial":
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if trial.config["kind"] != "trial":
            self._trial_info.pop(trial.trial_id, None)
            return
        super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._trial_info.pop(trial.trial_id, None)


def make_scheduler(experiment: Experiment) -> TrialScheduler:
    """The scheduler an experiment names."""
    search = experiment.search
    if search.scheduler == "none":
        return StudyFIFO()
    return StudyASHA(experiment.train.epochs, search.grace, search.eta)
