"""ASHA and median stopping that can be interrupted, against literal replays of the algorithms."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from akd.budget import Budget
from akd.config import resolve
from akd.rungs import rungs
from akd.scheduler import StudyASHA, StudyMedian, make_scheduler

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


class TestRungs:
    @pytest.mark.parametrize(
        ("epochs", "grace", "eta", "wanted"),
        [
            (60, None, 3, [6, 18, 54]),
            (18, None, 3, [2, 6, 18]),
            (27, None, 3, [3, 9, 27]),
            (9, None, 3, [1, 3, 9]),
            (8, None, 2, [1, 2, 4, 8]),
            (3, None, 3, [1, 3]),
            (1, None, 3, [1]),
            (10, 4, 2, [4, 8]),
            (10, 50, 2, [10]),
        ],
    )
    def test_by_hand(self, epochs: int, grace: int | None, eta: int, wanted: list[int]) -> None:
        assert rungs(epochs, grace, eta) == wanted

    @settings(max_examples=200, deadline=None)
    @given(st.integers(1, 1000), st.none() | st.integers(1, 100), st.integers(2, 10))
    def test_are_those_ray_decides_at(self, epochs: int, grace: int | None, eta: int) -> None:
        ours = rungs(epochs, grace, eta)
        scheduler = StudyASHA(epochs, grace, eta)
        rays = sorted(milestone for milestone, _ in scheduler._brackets[0]._rungs)
        assert [r for r in rays if r <= epochs] == ours  # Ray's may have one beyond the last epoch


class Literal:
    """Li et al. 2020, algorithm 2, as Ray counts: stop what is below the best 1/eta of those before it on its rung.

    What was let pass is looked at again after every later epoch, as it stands then among all of that rung.
    """

    def __init__(self, epochs: int, eta: int):
        self.epochs, self.eta = epochs, eta
        self.recorded: dict[int, dict[str, float]] = {r: {} for r in rungs(epochs, None, eta)}

    def cutoff(self, rung: int) -> float:
        return float(np.percentile(list(self.recorded[rung].values()), 100 * (1 - 1 / self.eta)))

    def report(self, name: str, epoch: int, value: float) -> str:
        if epoch in self.recorded:
            action = STOP if self.recorded[epoch] and value < self.cutoff(epoch) else CONTINUE
            self.recorded[epoch][name] = value
            return action
        passed = [r for r in self.recorded if r < epoch]
        if not passed or epoch == self.epochs:
            return CONTINUE
        return STOP if self.recorded[max(passed)][name] < self.cutoff(max(passed)) else CONTINUE


class LiteralMedian:
    """Golovin et al. 2017: stop what never was as good as the median of the others' mean accuracies up to a rung."""

    def __init__(self, epochs: int, eta: int):
        self.rungs = [r for r in rungs(epochs, None, eta) if r < epochs]
        self.others: dict[int, list[list[float]]] = {r: [] for r in self.rungs}
        self.curve: list[float] = []

    def report(self, name: str, epoch: int, value: float) -> str:
        self.curve = [*self.curve, value] if epoch > 1 else [value]
        if epoch not in self.rungs:
            return CONTINUE
        means = [float(np.mean(curve)) for curve in self.others[epoch]]
        self.others[epoch].append(self.curve)
        return STOP if len(means) >= 3 and max(self.curve) < np.median(means) else CONTINUE


LITERAL = {StudyASHA: Literal, StudyMedian: LiteralMedian}


class Looked:
    """A trial of Tune that counts how often its status is asked for."""

    looks = 0

    def __init__(self, number: int):
        self.trial_id, self.config, self._status = f"id{number}", {"kind": "trial", "folder": "/nowhere"}, "PENDING"

    @property
    def status(self) -> str:
        Looked.looks += 1
        return self._status

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


@pytest.mark.parametrize("name", ["asha", "median", "none"])
class TestOrder:
    def test_trials_start_as_they_came_and_ended_ones_are_not_looked_at(self, name: str) -> None:
        """What a report costs does not grow with the trials that have ended."""
        ours: Any = make_scheduler(resolve({"search": {"scheduler": name}}))
        rays, trials, found = FIFOScheduler(), [], []
        for number in range(200):
            trials.append(Looked(number))
            ours.on_trial_add(None, trials[-1])
            if number < 3:
                continue
            Looked.looks = 0
            chosen = ours.choose_trial_to_run(None)
            found.append(Looked.looks)
            assert chosen is rays.choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))  # type: ignore[arg-type]
            assert chosen is trials[number - 3]
            chosen._status = "RUNNING"
            assert ours.choose_trial_to_run(None) is trials[number - 2]
            chosen._status = "TERMINATED" if number % 2 else "ERROR"
        assert found[0] <= max(found[100:]) == max(found)
        assert max(found) <= 12

    def test_paused_ones_come_after_waiting_ones_and_tried_again_last(self, name: str) -> None:
        ours: Any = make_scheduler(resolve({"search": {"scheduler": name}}))
        a, b, c = (Looked(number) for number in range(3))
        for trial in (a, b, c):
            ours.on_trial_add(None, trial)
        a._status = "PAUSED"
        assert ours.choose_trial_to_run(None) is b
        b._status = "ERROR"
        assert ours.choose_trial_to_run(None) is c
        b._status = "PENDING"
        ours.on_trial_add(None, b)
        assert ours.choose_trial_to_run(None) is c
        c._status = "RUNNING"
        assert ours.choose_trial_to_run(None) is b
        b._status = "RUNNING"
        assert ours.choose_trial_to_run(None) is a
        a._status = "TERMINATED"
        assert ours.choose_trial_to_run(None) is None


class Sessions:
    """Trials on disk and a scheduler that may be replaced by a fresh one, as a resumed search does."""

    def __init__(self, folder: Path, epochs: int, eta: int = 3, rule: type = StudyASHA):
        self.folder, self.epochs, self.eta, self.rule = folder, epochs, eta, rule
        self.ended: list[str] = []
        self.fresh()

    def fresh(self) -> None:
        self.scheduler = self.rule(self.epochs, None, self.eta)
        for name in self.ended:
            self.scheduler.remember(name, self.history(name))

    def history(self, name: str) -> list[dict[str, float]]:
        path = self.folder / name / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trial(self, name: str, kind: str = "trial") -> Any:
        trial = SimpleNamespace(trial_id=f"id-{name}", config={"kind": kind, "folder": str(self.folder / name)})
        self.scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return trial

    def report(self, trial: Any, epoch: int, value: float) -> str:
        folder = Path(trial.config["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        if epoch > len(self.history(folder.name)):
            with open(folder / "history.jsonl", "a") as file:
                file.write(json.dumps({"epoch": epoch, "val/accuracy": value}) + "\n")
        return self.scheduler.on_trial_result(None, trial, {"epoch": epoch, "val_accuracy": value})  # type: ignore[arg-type]

    def run(self, name: str, curve: list[float], cut_after: int = 0, kind: str = "trial") -> list[str]:
        """The decisions for a trial; ``cut_after`` that many epochs the process dies, before the decision is known."""
        trial, actions, value = self.trial(name, kind), [], 0.0
        epoch = 0
        for epoch, value in enumerate(curve, 1):
            actions.append(self.report(trial, epoch, value))
            if epoch == cut_after:
                actions.pop()
                self.fresh()
                trial = self.trial(name, kind)
                actions.append(self.report(trial, epoch, value))  # the trainer reports its last epoch again
            if actions[-1] == STOP:
                self.scheduler.on_trial_complete(None, trial, {"epoch": epoch, "val_accuracy": value})  # type: ignore[arg-type]
                break
        else:
            self.scheduler.on_trial_complete(None, trial, {"epoch": epoch, "val_accuracy": value})  # type: ignore[arg-type]
        self.ended.append(name)
        return actions


def curves(seed: int, count: int, epochs: int) -> list[list[float]]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        best = draw.random()
        found.append([best * (1 - 0.7**e) + 0.05 * draw.random() for e in range(1, epochs + 1)])
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("epochs", "eta"), [(9, 3), (10, 2), (18, 3)])
@pytest.mark.parametrize("rule", [StudyASHA, StudyMedian])
def test_decisions_equal_a_literal_replay(rule: type, seed: int, epochs: int, eta: int, tmp_path: Path) -> None:
    """Undisturbed, and with a kill in every trial at every kind of epoch."""
    literal, whole = LITERAL[rule](epochs, eta), Sessions(tmp_path / "whole", epochs, eta, rule)
    cut = Sessions(tmp_path / "cut", epochs, eta, rule)
    stopped = 0
    for i, curve in enumerate(curves(seed, 20, epochs)):
        wanted = []
        for epoch, value in enumerate(curve, 1):
            wanted.append(literal.report(f"{i:05d}", epoch, value))
            if wanted[-1] == STOP:
                break
        stopped += wanted[-1] == STOP
        assert whole.run(f"{i:05d}", curve) == wanted
        assert cut.run(f"{i:05d}", curve, cut_after=1 + (i + seed) % epochs) == wanted
    assert 0 < stopped < 20


def test_what_passed_by_being_early_is_stopped_when_better_ones_have_come(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 9)  # rungs 1, 3, 9
    early = sessions.trial("00000")
    assert sessions.report(early, 1, 0.2) == CONTINUE  # nobody to compare it with
    for k in range(3):
        assert sessions.report(sessions.trial(f"0000{k + 1}"), 1, 0.5 + 0.1 * k) == CONTINUE
    assert sessions.report(early, 2, 0.9) == STOP  # by what it had at the rung
    best = sessions.trial("00009")
    assert [sessions.report(best, epoch, 0.9) for epoch in (1, 2, 3)] == [CONTINUE] * 3
    for k in range(3):
        other = sessions.trial(f"0001{k}")
        assert [sessions.report(other, epoch, 0.95) for epoch in (1, 2, 3)] == [CONTINUE] * 3
    # The rung that counts is the last one passed; at the next one that one decides; the last epoch is let end.
    assert sessions.report(best, 4, 0.99) == STOP
    assert sessions.report(best, 9, 0.99) == CONTINUE


def test_a_trial_that_reached_the_last_epoch_leaves_by_itself(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 10)  # rungs 1, 3, 9: nothing is to be decided at 10
    assert set(sessions.run("00000", [0.5] * 10)) == {CONTINUE}


def test_controls_are_never_stopped_and_never_recorded(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 9)
    for i in range(5):
        sessions.run(f"{i:05d}", [0.9] * 9)
    before = [dict(recorded) for _, recorded in sessions.scheduler._brackets[0]._rungs]
    for name, cut_after in (("none", 0), ("kd", 3)):
        assert set(sessions.run(name, [0.01] * 9, cut_after=cut_after, kind="control")) == {CONTINUE}
        sessions.ended.remove(name)  # a search that goes on remembers trials only
    after = [dict(recorded) for _, recorded in sessions.scheduler._brackets[0]._rungs]
    assert [sorted(r.values()) for r in after] == [sorted(r.values()) for r in before]
    assert sessions.run("bad", [0.01] * 9) == [STOP]


def test_median_stops_no_control_and_counts_none(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 9, rule=StudyMedian)
    for i in range(3):
        assert set(sessions.run(f"{i:05d}", [0.9] * 9)) == {CONTINUE}  # fewer than three before it
    for name, cut_after in (("none", 0), ("kd", 3)):
        assert set(sessions.run(name, [0.01] * 9, cut_after=cut_after, kind="control")) == {CONTINUE}
        sessions.ended.remove(name)
    assert [len(rung.means) for rung in sessions.scheduler._rungs.values()] == [3, 3]
    assert sessions.run("bad", [0.01] * 9) == [STOP]
    assert not sessions.scheduler._curves  # of ended trials nothing is kept but their means


def test_median_looks_at_the_best_so_far_against_means(tmp_path: Path) -> None:
    """A trial that fell back is not stopped, and a late bloomer is, at the rung alone."""
    sessions = Sessions(tmp_path, 9, rule=StudyMedian)
    for i in range(4):
        sessions.run(f"{i:05d}", [0.5, 0.6, 0.7] + [0.8] * 6)
    assert set(sessions.run("fell", [0.5, 0.61, 0.1] + [0.1] * 6)) == {CONTINUE}
    assert sessions.run("late", [0.5, 0.5, 0.5] + [0.99] * 6) == [CONTINUE, CONTINUE, STOP]
    assert sessions.run("between", [0.5, 0.61, 0.2] + [0.0] * 6)[-1] == CONTINUE


def test_median_ties_and_damaged_values(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 9, rule=StudyMedian)
    for i in range(6):
        assert set(sessions.run(f"{i:05d}", [0.5] * 9)) == {CONTINUE}  # as good as the median is not below it
    sessions.run("nan", [float("nan")] * 9)
    assert [len(rung.means) for rung in sessions.scheduler._rungs.values()] == [6, 6]


def test_a_trial_tried_again_in_the_same_session_is_not_decided_twice(tmp_path: Path) -> None:
    """Its process died after the rung; its own mean is no bar to itself."""
    sessions = Sessions(tmp_path, 9, rule=StudyMedian)
    for i in range(3):
        sessions.run(f"{i:05d}", [0.5] * 9)
    trial = sessions.trial("00003")
    assert sessions.report(trial, 1, 0.6) == CONTINUE
    sessions.scheduler.on_trial_add(None, trial)
    assert sessions.report(trial, 1, 0.6) == CONTINUE
    assert sessions.scheduler._rungs[1].means == [0.5, 0.5, 0.5, 0.6]
    assert sessions.report(trial, 2, 0.6) == CONTINUE
    assert sessions.scheduler._curves["00003"].epochs == 2


def test_a_failed_result_decides_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 9)
    sessions.run("00000", [0.9] * 9)
    trial = sessions.trial("00001")
    assert sessions.scheduler.on_trial_result(None, trial, {"failed": "out of memory"}) == CONTINUE  # type: ignore[arg-type]
    sessions.scheduler.on_trial_complete(None, trial, {"failed": "out of memory"})  # type: ignore[arg-type]
    sessions.scheduler.on_trial_remove(None, trial)  # type: ignore[arg-type]
    sessions.scheduler.on_trial_remove(None, trial)  # type: ignore[arg-type] # twice is harmless


@pytest.mark.parametrize("name", ["asha", "median", "none"])
def test_goes_into_tunes_pickle_without_the_budget(name: str, tmp_path: Path) -> None:
    """A clock or a terminal in it would end the search before its first trial."""
    lock = threading.Lock()
    e = resolve({"search": {"scheduler": name, "device_hours": 1.0}})
    made = make_scheduler(e, Budget(e, tmp_path, say=lambda line: lock.release(), elapsed=lambda: float(lock.locked())))
    cloudpickle.loads(cloudpickle.dumps(made))


def test_made_as_the_experiment_says() -> None:
    assert isinstance(make_scheduler(resolve({"search": {"scheduler": "none"}})), FIFOScheduler)
    made = make_scheduler(resolve({"train": {"epochs": 20}, "search": {"grace": 4, "eta": 2}}))
    assert isinstance(made, StudyASHA)
    assert sorted(m for m, _ in made._brackets[0]._rungs)[:3] == [4, 8, 16]
    median = make_scheduler(resolve({"train": {"epochs": 20}, "search": {"scheduler": "median", "grace": 4, "eta": 2}}))
    assert isinstance(median, StudyMedian)
    assert list(median._rungs) == [4, 8, 16]
    last = make_scheduler(resolve({"train": {"epochs": 16}, "search": {"scheduler": "median", "grace": 4, "eta": 2}}))
    assert list(last._rungs) == [4, 8]  # at the last epoch nothing is left to stop
