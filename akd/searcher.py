"""Optuna through Ray Tune: what is tried next, what the study is told, and how a search goes on after a kill.

Ray's own ``OptunaSearch`` tells a trial stopped by the scheduler as complete and cannot continue on a new Tune run, so
this adapter speaks to Optuna's ask-and-tell itself. Trial folders are the truth; Optuna's journal is told from them.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator
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

from akd import folder as run_folder
from akd.config import Experiment
from akd.errors import AkdError, is_full, reason
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.rungs import rungs
from akd.scheduler import METRIC, TIME
from akd.scratch import scratch_trial
from akd.seeds import derive
from akd.space import Space

_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


def open_study(path: Path, name: str) -> optuna.Study:
    """The Optuna study in a journal file, made if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_half_line(path)
    # Suggestions are made elsewhere (StudySearcher._ask) and enter fixed: this sampler never chooses anything.
    idle = optuna.samplers.RandomSampler(seed=0)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage, study_name=name, sampler=idle, direction="maximize", load_if_exists=True
        )
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


def make_sampler(experiment: Experiment, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of suggestion ``number``.

    Seeded from (study seed, number), so that a search that was interrupted suggests what it would have suggested.
    """
    search = experiment.search
    seed = derive("suggest", search.seed, number) % 2**32
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            # Parameter by parameter: a joint density of several wants more trials than a search has.
            multivariate=False,
            constant_liar=True,
            # A quarter of a short search is enough at random; Optuna's ten would be all of it.
            n_startup_trials=min(10, max(4, search.trials // 4)),
        )


@dataclass
class _Live:
    """A run that Tune holds at the moment."""

    folder: Path
    run: Run
    trial_id: int | None
    reported: set[int]


class StudySearcher(Searcher):
    """Hands out controls, then unfinished trials of an earlier session, then new suggestions.

    Args:
        experiment: resolved.
        space: parsed.
        study: Optuna's study.
        folder: the study's folder; trials live in ``trials/00003``, controls in ``controls/kd``.
        controls: name -> experiment of the fixed runs.
        on_change: called with a run's folder whenever it is created or ended.
        fetch: called with a run's folder before it is read, to bring what another node wrote.
        clock: seconds, for the time budget.

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
    ):
        super().__init__(metric=METRIC, mode="max")
        self.experiment, self.space, self.study, self.folder = experiment, space, study, folder
        self.on_change, self.fetch, self._clock = on_change, fetch, clock
        self.on_full: Callable[[], None] = lambda: None  # whoever runs the search ends it here
        self.closed = False
        self.full: str | None = None
        self.live: dict[str, _Live] = {}
        budget = experiment.search.time_budget
        self._deadline = clock() + budget if budget else float("inf")
        self._waiting: list[Callable[[], _Live]] = []
        for name, control in controls.items():
            run = Run.read(folder / "controls" / name)
            if run is None or run.state == RUNNING:
                self._waiting.append(partial(self._control, name, control))
        self._recover()

    # -- what Tune asks ----------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> Any:
        """The next run's Tune configuration; ``FINISHED`` when there is none."""
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
            if len(past) >= self.experiment.search.trials or self._clock() >= self._deadline:
                return Searcher.FINISHED
            live = self._ask(past)
        self.live[trial_id] = live
        self.on_change(live.folder)
        return {"folder": str(live.folder), "kind": live.run.kind, "name": live.run.name}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch's validation accuracy on as an intermediate value."""
        live = self.live.get(trial_id)
        if live and live.trial_id is not None and METRIC in result and TIME in result:
            with self._room():
                self._report(live, int(result[TIME]), float(result[METRIC]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write how a run ended into its folder, then tell Optuna."""
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        if is_full(failed := (result or {}).get("failed")):
            self._out_of_room(str(failed))
        with self._room():
            self._ended(live, result, error)

    def _ended(self, live: _Live, result: dict[str, Any] | None, error: bool) -> None:
        if self.full is not None:
            return
        self.fetch(live.folder)
        entries = run_folder.history(live.folder)
        epochs = int(entries[-1]["epoch"]) if entries else 0
        wanted = self.experiment.train.epochs
        failed = (result or {}).get("failed")
        if error or failed or not epochs:
            live.run.end(live.folder, FAILED, failed or "the worker process died")
        else:
            live.run.rung = max((r for r in self._rungs() if r <= epochs), default=None)
            live.run.end(live.folder, COMPLETE if epochs >= wanted else PRUNED)
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
            run = Run("control", f"control {name}")
            run_folder.create(folder, experiment, run)
        self.fetch(folder)
        return _Live(folder, run, None, set())

    def _ask(self, past: list[FrozenTrial]) -> _Live:
        # The whole suggestion is made beside the study and enters the journal in one write. A kill can then never
        # leave half of it behind, whose other half would be drawn from another place of the random stream.
        scratch = scratch_trial(self._shown(past), self.study.directions, make_sampler(self.experiment, len(past)))
        values = self.space(scratch)
        trial_id = self._enter(len(past), scratch.params, scratch.distributions)
        return self._folder_of(len(past), trial_id, values)

    def _shown(self, past: list[FrozenTrial]) -> list[FrozenTrial]:
        """What the sampler sees: of trials that run, those that came to a rung count with what they have so far.

        As running ones they would only say that somebody is there, and keep suggestions away from the best.
        """
        first = self._rungs()[0]
        return [_so_far(t) if t.state == TrialState.RUNNING and (t.last_step or 0) >= first else t for t in past]

    def _enter(self, number: int, params: dict[str, Any], distributions: dict[str, Any]) -> int:
        """A trial with all its values into the journal, in one write; gives its id."""
        self.study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        return self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def _materialise(self, trial: optuna.Trial) -> _Live:
        return self._folder_of(trial.number, trial._trial_id, self.space(trial))

    def _folder_of(self, number: int, trial_id: int, values: dict[str, Any]) -> _Live:
        folder = self.folder / "trials" / f"{number:05d}"
        run = Run("trial", f"trial {number}", number=number, parameters=values)
        run_folder.create(folder, self.experiment.with_values(values), run)
        return _Live(folder, run, trial_id, set())

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
            live = _Live(path.parent, run, self._enter(run.number, fixed.params, fixed.distributions), set())
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
        values = [entries[-1]["val/accuracy"]] if state == TrialState.COMPLETE else None
        self.study.tell(live.run.number, values=values, state=state)


def rank_key(epochs: int, accuracy: float, number: int | None) -> tuple[float, ...]:
    """What a study's trials are ordered by, best first: how far they came, then validation accuracy, then age."""
    return (-epochs, -accuracy, number or 0)


def _so_far(trial: FrozenTrial) -> FrozenTrial:
    """A running trial as if it ended now."""
    found = copy.copy(trial)
    found.state = TrialState.PRUNED
    return found


def ranking(folder: Path) -> list[tuple[Run, float, int]]:
    """A study's trials, best first: (run, validation accuracy, epochs run).

    Finished trials come before stopped ones, stopped ones by how far they came; ties go to the earlier trial.
    """
    found = []
    for path in sorted((folder / "trials").glob("*/run.json")):
        run = Run.read(path.parent)
        entries = run_folder.history(path.parent)
        if run is not None and run.state in (COMPLETE, PRUNED) and entries:
            found.append((run, entries[-1].get("val/accuracy", float("-inf")), int(entries[-1]["epoch"])))
    return sorted(found, key=lambda item: rank_key(item[2], item[1], item[0].number))
