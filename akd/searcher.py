"""Optuna through Ray Tune: what is tried next, what the study is told, and how a search goes on after a kill.

Ray's own ``OptunaSearch`` tells a trial stopped by the scheduler as complete and cannot continue on a new Tune run, so
this adapter speaks to Optuna's ask-and-tell itself. Trial folders are the truth; Optuna's journal is told from them.
"""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from akd import confirm, front, starts
from akd import folder as run_folder
from akd.budget import Budget
from akd.config import Experiment
from akd.errors import AkdError, is_full, reason
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.objectives import ACCURACY, as_results, directions, figures_of, values_of
from akd.rungs import rungs
from akd.samplers import make_sampler, used_up
from akd.scheduler import METRIC, TIME
from akd.scratch import scratch_trial
from akd.space import Space
from akd.warm import First

_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


def open_study(path: Path, name: str, objectives: Sequence[str] = (ACCURACY,)) -> optuna.Study:
    """The Optuna study in a journal file, made if it is not there, with a direction for each objective."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_half_line(path)
    # Suggestions are made elsewhere (StudySearcher._ask) and enter fixed: this sampler never chooses anything.
    idle = optuna.samplers.RandomSampler(seed=0)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name=name, sampler=idle, directions=directions(objectives), load_if_exists=True
        )
        if len(objectives) > 1 and study.metric_names is None:  # what plots call the axes
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(objectives))
        return study
    except OSError:
        raise
    except Exception as error:  # whatever a damaged journal makes Optuna raise
        raise AkdError(f"{path} is damaged, the study cannot go on: {reason(error)}") from None


def _cut_half_line(path: Path) -> None:
    """Drop what a full disk or a power cut left of a journal's last line: appended to, it would spoil the journal."""
    if path.is_file():
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(path, whole)


@dataclass
class _Live:
    """A run that Tune holds at the moment."""

    folder: Path
    run: Run
    trial_id: int | None
    reported: set[int]


class StudySearcher(Searcher):
    """Hands out controls, then unfinished trials of an earlier session, then new suggestions, then confirmation runs.

    Args:
        experiment: resolved.
        space: parsed.
        study: Optuna's study.
        folder: the study's folder; trials live in ``trials/00003``, controls in ``controls/kd``, confirmation runs in
            ``confirm/00003-seed101``.
        controls: name -> experiment of the fixed runs.
        on_change: called with a run's folder whenever it is created or ended.
        fetch: called with a run's folder before it is read, to bring what another node wrote.
        clock: seconds, for the time budget where no ``budget`` is given.
        budget: the study's account; default one that begins now.
        costs: student -> cost -> figure, see :mod:`akd.costs`; all there are of the objectives.
        first: configurations of a warm start, tried before any other.

    Attributes:
        closed: hand out nothing more.
        full: what first found the disk full. From then on nothing is written or told: every run that has not ended
            goes on in the next session. A failed trial would be failed for ever, for no fault of its configuration.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: Space,
        study: optuna.Study,
        folder: Path,
        controls: dict[str, Experiment],
        on_change: Callable[[Path], None] = lambda folder: None,
        clock: Callable[[], float] = time.monotonic,
        fetch: Callable[[Path], None] = lambda folder: None,
        budget: Budget | None = None,
        costs: Mapping[str, Mapping[str, float]] | None = None,
        first: Sequence[First] = (),
    ):
        super().__init__(metric=METRIC, mode="max")
        self.experiment, self.space, self.study, self.folder = experiment, space, study, folder
        self.on_change, self.fetch, self.costs = on_change, fetch, costs or {}
        self.first = first
        self.on_full: Callable[[], None] = lambda: None  # whoever runs the search ends it here
        self.closed = False
        self.full: str | None = None
        self.live: dict[str, _Live] = {}
        began = clock()
        self.budget = budget or Budget(experiment, folder, elapsed=lambda: clock() - began)
        self._waiting: list[Callable[[], _Live]] = []
        self._deaths: Counter[Path] = Counter()
        self._wanted: tuple[tuple[int, int], ...] | None = None  # confirmation runs; not known since a run has ended
        for name, control in controls.items():
            run = Run.read(folder / "controls" / name)
            if run is None or run.state == RUNNING:
                self._waiting.append(partial(self._control, name, control))
        self._recover()

    # -- what Tune asks ----------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> Any:
        """The next run's Tune configuration; ``None`` while it depends on runs that go on; ``FINISHED`` at the end."""
        with self._room():
            return self._suggest(trial_id)
        return Searcher.FINISHED

    def _suggest(self, trial_id: str) -> Any:
        if self.closed:
            return Searcher.FINISHED
        if self._waiting:
            live = self._waiting.pop(0)()
        else:
            past = self.study.get_trials(deepcopy=False)
            if len(past) >= self.experiment.search.trials or used_up(self.experiment, self.space, past):
                return self._confirming(trial_id)
            if not (fits := self.budget.admits()):
                return None if fits is None else self._confirming(trial_id)  # None: Tune asks again
            live = self._ask(past)
        return self._hand_out(trial_id, live)

    def _confirming(self, trial_id: str) -> Any:
        """The next run of the race that names the winner, see :mod:`akd.confirm`."""
        running = sum(live.run.kind == "trial" for live in self.live.values())
        if self._wanted is None and running < self.experiment.search.confirm:  # else nobody is sure to take part yet
            self._wanted = confirm.race(self.folder, self.experiment, ranking(self.folder), running).wanted
        busy = {live.folder for live in self.live.values()}
        for number, seed in self._wanted or ():
            if confirm.folder_of(self.folder, number, seed) not in busy:
                return self._hand_out(trial_id, self._confirm(number, seed))
        # Tune asks again ten times a second, and with nothing running it would wait for ten minutes. What runs may call
        # for more: confirmation, or another process if its own dies as it begins.
        return None if self.live else Searcher.FINISHED

    def _hand_out(self, trial_id: str, live: _Live) -> dict[str, Any]:
        self.live[trial_id] = live
        self.budget.started(live.folder, live.run.kind)
        self.on_change(live.folder)
        return {"folder": str(live.folder), "kind": live.run.kind, "name": live.run.name}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch's validation accuracy on as an intermediate value."""
        live = self.live.get(trial_id)
        if live and live.trial_id is not None and METRIC in result and TIME in result:
            with self._room():
                self._report(live, int(result[TIME]), float(result[METRIC]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write how a run ended into its folder, then tell Optuna.

        Args:
            error: its process is gone, and Tune gives it up: that was to begin the run, and died before or while it
                did. The run is handed out again.
        """
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        if error:
            self._deaths[live.folder] += 1
            if self._deaths[live.folder] < starts.MOST:
                self._waiting.insert(0, partial(self._anew, live))
                return
        if is_full(failed := (result or {}).get("failed")):
            self._out_of_room(str(failed))
        with self._room():
            self._ended(live, result, error)

    def _ended(self, live: _Live, result: dict[str, Any] | None, error: bool) -> None:
        if self.full is not None:
            return
        self._wanted = None
        self.fetch(live.folder)
        entries = run_folder.history(live.folder)
        epochs = int(entries[-1]["epoch"]) if entries else 0
        wanted = self.experiment.train.epochs
        failed = (result or {}).get("failed")
        if error or failed or not epochs:
            live.run.end(live.folder, FAILED, failed or "the worker process died")
        else:
            live.run.rung = max((r for r in self._rungs() if r <= epochs), default=None)
            stopped = epochs < wanted
            live.run.end(live.folder, *((PRUNED, self.budget.reason(live.folder)) if stopped else (COMPLETE,)))
        self.budget.ended(live.folder, live.run.state)
        if live.trial_id is not None:
            self._tell(live)
        self.on_change(live.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into its snapshots, which akd never reads: nothing goes in."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: folders and journal hold it all."""

    def restore(self, checkpoint_path: str) -> None:
        """A study goes on through :meth:`_recover`, never through Tune's snapshots."""

    # -- a full disk -------------------------------------------------------------------------------

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Within the block a disk that is full ends the search in order, not Tune in disorder."""
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            self._out_of_room(str(error))

    def _out_of_room(self, why: str) -> None:
        if self.full is None:
            self.full, self.closed = why, True
            self.on_full()

    # -- handing out -------------------------------------------------------------------------------

    def _rungs(self) -> list[int]:
        search = self.experiment.search
        return rungs(self.experiment.train.epochs, search.grace, search.eta)

    def _control(self, name: str, experiment: Experiment) -> _Live:
        folder = self.folder / "controls" / name
        run = Run.read(folder)
        if run is None:
            run = Run("control", f"control {name}", results=self._cost(experiment))
            run_folder.create(folder, experiment, run)
        self.fetch(folder)
        return _Live(folder, run, None, set())

    def _anew(self, live: _Live) -> _Live:
        self.fetch(live.folder)
        return live

    def _confirm(self, number: int, seed: int) -> _Live:
        folder = confirm.folder_of(self.folder, number, seed)
        run = Run.read(folder)
        if run is None:
            trial = Run.read(self.folder / "trials" / f"{number:05d}")
            assert trial is not None
            tags = {"trial": str(number)}
            run = Run("confirm", f"trial {number} seed {seed}", parameters=trial.parameters, tags=tags)
            run_folder.create(folder, confirm.seeded(self.experiment, trial.parameters, seed), run)
        self.fetch(folder)
        return _Live(folder, run, None, set())

    def _ask(self, past: list[FrozenTrial]) -> _Live:
        # The whole suggestion is made beside the study and enters the journal in one write. A kill can then never
        # leave half of it behind, whose other half would be drawn from another place of the random stream.
        first = self._next_first(past)
        fixed = self.space.told(first.values) if first else None
        sampler = make_sampler(self.experiment, len(past), self.space)
        scratch = scratch_trial(self._seen(past), self.study.directions, sampler, fixed)
        values = self.space(scratch)
        tags = {"warm_start": first.source} if first else {}
        trial_id = self._enter(len(past), scratch.params, scratch.distributions, self._shown(values) | tags)
        return self._folder_of(len(past), trial_id, values, tags)

    def _seen(self, past: list[FrozenTrial]) -> list[FrozenTrial]:
        """What TPE sees: of trials that run, those that came to a rung count with what they have so far.

        As running ones they would only say that somebody is there, and keep suggestions away from the best.
        """
        if self.experiment.search.sampler != "tpe":
            return past
        first = self._rungs()[0]
        return [_so_far(t) if t.state == TrialState.RUNNING and (t.last_step or 0) >= first else t for t in past]

    def _next_first(self, past: list[FrozenTrial]) -> First | None:
        """The configuration of a warm start whose turn it is."""
        tried = sum("warm_start" in trial.user_attrs for trial in past) if self.first else 0
        return self.first[tried] if tried < len(self.first) else None

    def _shown(self, values: Mapping[str, Any]) -> dict[str, str]:
        """For who reads the study with Optuna's tools: lists, which Optuna holds by their position."""
        lists = {p.key for p in self.space.searched if p.kind == "choice" and not p.scalars}
        return {key: json.dumps(value) for key, value in values.items() if key in lists}

    def _enter(
        self, number: int, params: dict[str, Any], distributions: dict[str, Any], shown: Mapping[str, str]
    ) -> int:
        """A trial with all its values into the journal, in one write; gives its id."""
        attributes = {"folder": f"trials/{number:05d}", **shown}
        self.study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes)
        )
        return self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def _materialise(self, trial: optuna.Trial) -> _Live:
        tags = {key: text for key, text in trial.user_attrs.items() if key == "warm_start"}
        return self._folder_of(trial.number, trial._trial_id, self.space(trial), tags)

    def _folder_of(self, number: int, trial_id: int, values: dict[str, Any], tags: dict[str, str]) -> _Live:
        folder = self.folder / "trials" / f"{number:05d}"
        experiment = self.experiment.with_values(values)
        cost = self._cost(experiment)
        run = Run("trial", f"trial {number}", number=number, parameters=values, results=cost, tags=tags)
        run_folder.create(folder, experiment, run)
        return _Live(folder, run, trial_id, set())

    def _cost(self, experiment: Experiment) -> dict[str, float]:
        """What a run's student costs, as results of the run: known before it trains."""
        return as_results(self.costs.get(experiment.student.name, {}))

    # -- going on after an interruption ------------------------------------------------------------

    def _recover(self) -> None:
        """Bring Optuna's study in line with the folders, and queue what is unfinished, oldest first."""
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state.is_finished():
                continue
            folder = self.folder / "trials" / f"{frozen.number:05d}"
            run = Run.read(folder)
            if run is not None and run.state != RUNNING:
                self._tell(_Live(folder, run, frozen._trial_id, set(frozen.intermediate_values)))
            else:
                self._waiting.append(partial(self._again, frozen))
        self._remember()

    def _remember(self) -> None:
        """Enter trials that have a folder and are not in the study: it was lost with the machine that held it."""
        known = len(self.study.get_trials(deepcopy=False))
        for path in sorted((self.folder / "trials").glob("*/run.json")):
            run = Run.read(path.parent)
            if run is None or run.number is None or run.number < known:
                continue
            fixed = optuna.trial.FixedTrial(self.space.told(run.parameters))
            self.space(fixed)
            tags = {key: text for key, text in run.tags.items() if key == "warm_start"}
            trial_id = self._enter(run.number, fixed.params, fixed.distributions, self._shown(run.parameters) | tags)
            live = _Live(path.parent, run, trial_id, set())
            if run.state != RUNNING:
                self._tell(live)
            else:
                self._waiting.append(partial(_Live, path.parent, run, live.trial_id, set()))

    def _again(self, frozen: FrozenTrial) -> _Live:
        folder = self.folder / "trials" / f"{frozen.number:05d}"
        run = Run.read(folder)
        if run is not None:
            self.fetch(folder)
            return _Live(folder, run, frozen._trial_id, set(frozen.intermediate_values))
        # Killed between the suggestion and its folder: the journal holds every value.
        if frozen.state == TrialState.WAITING:
            return self._materialise(self.study.ask())
        return self._materialise(optuna.Trial(self.study, frozen._trial_id))

    # -- telling -----------------------------------------------------------------------------------

    def _report(self, live: _Live, epoch: int, value: float) -> None:
        if epoch not in live.reported and live.trial_id is not None and self.full is None:
            live.reported.add(epoch)
            self.study._storage.set_trial_intermediate_value(live.trial_id, epoch, value)

    def _tell(self, live: _Live) -> None:
        assert live.run.number is not None
        entries = run_folder.history(live.folder)
        for entry in entries:
            if "val/accuracy" in entry:
                self._report(live, int(entry["epoch"]), entry["val/accuracy"])
        state = _STATES[live.run.state]
        values = None
        if state == TrialState.COMPLETE:
            objectives = self.experiment.search.objectives
            values = values_of(objectives, entries[-1]["val/accuracy"], figures_of(live.run.results))
        if live.run.reason and live.trial_id is not None:
            self.study._storage.set_trial_user_attr(live.trial_id, "reason", live.run.reason)
        self.study.tell(live.run.number, values=values, state=state)


def rank_key(epochs: int, accuracy: float) -> tuple[float, ...]:
    """What a study's trials are ordered by, best first: how far they came, then validation accuracy."""
    return (-epochs, -accuracy)


def _so_far(trial: FrozenTrial) -> FrozenTrial:
    """A running trial as if it ended now."""
    found = copy.copy(trial)
    found.state = TrialState.PRUNED
    return found


def ranking(folder: Path) -> list[tuple[Run, float, int]]:
    """A study's trials, best first: (run, validation accuracy, epochs run).

    Finished trials come before stopped ones, stopped ones by how far they came; ties go to the one that costs less
    where cost is an objective, then to the earlier trial. What breaks a constraint is left out.
    """
    found, search = [], front.asked(folder)
    for path in sorted((folder / "trials").glob("*/run.json")):
        run = Run.read(path.parent)
        entries = run_folder.history(path.parent)
        if run is not None and run.state in (COMPLETE, PRUNED) and entries and front.obeys(search, run.results):
            found.append((run, entries[-1].get("val/accuracy", float("-inf")), int(entries[-1]["epoch"])))

    def order(item: tuple[Run, float, int]) -> tuple[float, ...]:
        run, accuracy, epochs = item
        return (*rank_key(epochs, accuracy), *front.preferred(search, run.results), run.number or 0)

    return sorted(found, key=order)
