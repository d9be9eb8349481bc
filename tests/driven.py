"""A search driven by hand on the simulated objective: what Tune and the trainer do around searcher and scheduler.

No Ray is started. A session may be killed at any write, and a new one in the same folder goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import simulated
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from akd import folder as run_folder
from akd.budget import Budget
from akd.config import Experiment, resolve
from akd.folder import Run
from akd.scheduler import COST, METRIC, TIME, make_scheduler
from akd.searcher import StudySearcher, open_study
from akd.space import Space, parse


class Driven:
    """One session of a study.

    Args:
        folder: the study's.
        space: of the experiment, where it was parsed before: that takes longer than a trial here.
        controls: whether there are any.
        on_start, on_epoch: called with a run's folder, for clocks and kills.
        budget: of keywords of :class:`akd.budget.Budget`.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        space: Space | None = None,
        *,
        controls: bool = True,
        on_start: Callable[[Path], None] = lambda folder: None,
        on_epoch: Callable[[Path], None] = lambda folder: None,
        **budget: Any,
    ):
        self.folder, self.experiment, self.on_start, self.on_epoch = folder, experiment, on_start, on_epoch
        named = {n: resolve(experiment.to_dict() | {"method": n}, strict=False) for n in ("none", "kd")}
        folder.mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []
        self.budget = Budget(experiment, folder, say=self.said.append, **budget)
        study = open_study(folder / "optuna.log", "s")
        space = space or parse(experiment)
        self.searcher = StudySearcher(experiment, space, study, folder, named if controls else {}, budget=self.budget)
        self.scheduler = make_scheduler(experiment, self.budget)
        for path in sorted(folder.glob("trials/*/run.json")):
            past = Run.read(path.parent)
            if past is not None and past.state != run_folder.RUNNING:
                self.scheduler.remember(path.parent.name, run_folder.history(path.parent))
        self.started: list[str] = []
        self._ids = (f"tune{i}" for i in itertools.count())

    def run(self, concurrent: int = 1) -> None:
        """Until the searcher has no more: an epoch of each in turn."""
        live: list[Any] = []
        more = True
        while more or live:
            while more and len(live) < concurrent:
                trial = self._start()
                if trial is None:
                    more = False
                elif trial == "later":
                    assert live, "nothing runs, and nothing is to be started: Tune would wait for ever"
                    break
                else:
                    live.append(trial)
            live = [trial for trial in live if self._step(trial)]

    def _start(self) -> Any:
        trial_id = next(self._ids)
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            return None
        if config is None:
            return "later"
        self.started.append(config["name"])
        self.on_start(Path(config["folder"]))
        trial = SimpleNamespace(trial_id=trial_id, config=config, again=bool(self._history(config)))
        self.scheduler.on_trial_add(None, trial)
        return trial

    def _history(self, config: dict[str, Any]) -> list[dict[str, float]]:
        return run_folder.history(Path(config["folder"]))

    def _step(self, trial: Any) -> bool:
        """The next epoch; first, of one that goes on, the report of the last one it has. False when it has ended."""
        folder, of = Path(trial.config["folder"]), self.experiment.train.epochs
        known, run = self._history(trial.config), Run.read(folder)
        assert run is not None
        if trial.again:
            trial.again = False
            if self._report(trial, known[-1]) == TrialScheduler.STOP:
                return self._end(trial, {TIME: known[-1]["epoch"], METRIC: known[-1]["val/accuracy"]})
        if len(known) >= of:
            return self._end(trial, {TIME: of, METRIC: known[-1]["val/accuracy"]})
        if run.kind == "trial" and len(known) == 1 and simulated.diverges(run.parameters):
            return self._end(trial, {"failed": "diverged in epoch 2: train/loss not finite"})
        seed = self.experiment.train.seed
        (entry,) = simulated.write_epochs(folder, run, [len(known) + 1], of, seed)
        self.on_epoch(folder)
        if self._report(trial, entry) == TrialScheduler.STOP or entry["epoch"] == of:
            return self._end(trial, {TIME: entry["epoch"], METRIC: entry["val/accuracy"]})
        return True

    def _report(self, trial: Any, entry: dict[str, float]) -> str:
        cost = entry["time/epoch_s"] * entry["time/devices"]
        result = {TIME: int(entry["epoch"]), METRIC: entry["val/accuracy"], COST: cost}
        action = self.scheduler.on_trial_result(None, trial, result)
        if action != TrialScheduler.STOP:  # Tune does not tell its searcher of a report that ends a trial
            self.searcher.on_trial_result(trial.trial_id, result)
        return action

    def _end(self, trial: Any, result: dict[str, Any]) -> bool:
        self.scheduler.on_trial_complete(None, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)
        return False
