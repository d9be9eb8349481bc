"""Budgets: no part of a trial is started that would pass them, what runs is finished, the winner is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated
from driven import Driven
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akd import budget as budgets
from akd import folder as run_folder
from akd.budget import Budget, account, account_words, allows, limit_of, limit_words
from akd.config import Experiment, resolve
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.rungs import stages
from akd.searcher import open_study, ranking
from akd.space import Space, parse

SPACE = {
    "method.host.name": "kd",
    "method.host.weight": {"type": "float", "low": 0.5, "high": 4.0},
    "method.host.temperature": 4.0,
    "method.views.count": {"type": "int", "low": 1, "high": 8},
    "method.views.margin": 0.2,
    "method.views.head": "full",
    "train.lr": 0.05,  # so small that none diverges
}
EPOCH = 60.0  # seconds of one of a control, see tests/simulated.py
PARSED: list[Space] = []


def experiment(epochs: int = 9, trials: int = 30, **search: Any) -> Experiment:
    e = simulated.experiment(trials, epochs, **{"sampler": "random", "confirm": 0, **search})
    return e.__class__(**{**e.__dict__, "space": SPACE})


def driven(folder: Path, e: Experiment, **more: Any) -> Driven:
    if not PARSED:
        PARSED.append(parse(experiment()))
    return Driven(folder, e, PARSED[0], **more)


def runs(folder: Path, part: str = "trials") -> list[Run]:
    return [run for p in sorted(folder.glob(f"{part}/*/run.json")) if (run := Run.read(p.parent))]


def total(folder: Path, part: str = "*") -> float:
    """Device-seconds of everything under a study, read again from its files."""
    found = 0.0
    for path in folder.glob(f"{part}/*/history.jsonl"):
        found += sum(e["time/epoch_s"] * e["time/devices"] for e in run_folder.history(path.parent))
    return found


def at_pace(monkeypatch: pytest.MonkeyPatch, of: Any) -> None:
    """Let an epoch of a trial take so many epochs of a control: a number, or a function of its values."""
    monkeypatch.setattr(simulated, "cost", lambda values, epochs: epochs * (of(values) if callable(of) else of))


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


class TestNothingPassesIt:
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        pace=st.sampled_from([0.5, 1.0, 3.0]),
        whole_trials=st.floats(0.2, 6.0),
        scheduler=st.sampled_from(["asha", "median", "none"]),
        concurrent=st.integers(1, 4),
        seed=st.integers(0, 5),
    )
    def test_and_what_is_left_is_too_little_for_more(
        self, pace: float, whole_trials: float, scheduler: str, concurrent: int, seed: int, tmp_path_factory: Any
    ) -> None:
        """At a known pace to the second: controls, final runs and all that was started stay within the budget."""
        folder = tmp_path_factory.mktemp("study")
        # Controls; final runs on a quarter more images. What an epoch of a trial takes is known when one has shown it.
        known, fixed = (EPOCH * 9 * (2 + 1.25 * (max(p, 1.0) + 2)) for p in (1.0, pace))
        limit = fixed + whole_trials * 9 * EPOCH * pace
        e = experiment(scheduler=scheduler, seed=seed, device_hours=limit / 3600)
        with pytest.MonkeyPatch.context() as patch:
            at_pace(patch, pace)
            session = driven(folder, e, final_share=1.25)
            session.run(concurrent)
        spent, first = total(folder), stages(e.search, 9)[0] * EPOCH * pace
        finals = 1.25 * EPOCH * 9 * (max(pace, 1.0) + 2)
        warned = any(line.startswith("warning") for line in session.said)
        assert warned == (limit < known + stages(e.search, 9)[0] * EPOCH)
        if warned:
            assert len(runs(folder)) == 1
        if len(runs(folder)) > 1:
            assert spent + finals <= limit * (1 + 1e-6)
        if len(runs(folder)) < 30:
            assert spent + finals + first > limit * (1 - 1e-6)
            assert any("no more trials" in line for line in session.said)
        assert all(run.state in (COMPLETE, PRUNED) for run in runs(folder))
        assert ranking(folder)  # there is a winner to train
        for run in runs(folder, "controls"):
            assert (run.state, run.rung) == (COMPLETE, 9)

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        spread=st.floats(1.0, 4.0),
        whole_trials=st.floats(1.0, 8.0),
        scheduler=st.sampled_from(["asha", "median", "none"]),
        concurrent=st.integers(1, 4),
        seed=st.integers(0, 5),
    )
    def test_the_account_is_that_of_the_folders_at_every_decision(
        self, spread: float, whole_trials: float, scheduler: str, concurrent: int, seed: int, tmp_path_factory: Any
    ) -> None:
        """Trials of unlike pace: whatever is let on fits, by an account read again from all files each time."""
        folder = tmp_path_factory.mktemp("study")
        limit = EPOCH * 9 * (2 + spread + 2 + whole_trials * spread)
        e = experiment(scheduler=scheduler, seed=seed, device_hours=limit / 3600)
        decisions = []
        with pytest.MonkeyPatch.context() as patch:
            at_pace(patch, lambda values: 1 + (spread - 1) * (values["method.views.count"] - 1) / 7)
            session = driven(folder, e)
            real = session.budget._over

            def over(need: float) -> str | None:
                found = real(need)
                spent, bound, aside = literal(folder, session.budget, e)
                decisions.append((found is None, spent + bound + aside + need <= limit * (1 + 1e-9)))
                assert session.budget.spent == pytest.approx(spent)
                assert session.budget.bound == pytest.approx(bound)
                assert session.budget.set_aside == pytest.approx(aside)
                return found

            patch.setattr(session.budget, "_over", over)
            session.run(concurrent)
        assert decisions
        assert all(let == fits for let, fits in decisions)
        again = Budget(e, folder)  # as a session that goes on finds it
        assert (again.spent, again.bound) == (pytest.approx(session.budget.spent), 0.0)
        assert again.set_aside == pytest.approx(session.budget.set_aside)


def literal(folder: Path, budget: Budget, e: Experiment) -> tuple[float, float, float]:
    """The account by the rules as they are written, from all folders."""
    ended, live, controls = [], [], {}
    spent = bound = 0.0
    for path in sorted(folder.glob("*/*/run.json")):
        run, entries = Run.read(path.parent), run_folder.history(path.parent)
        assert run is not None
        seconds = sum(x["time/epoch_s"] * x["time/devices"] for x in entries)
        spent += seconds
        if run.kind == "control" and entries:
            controls[path.parent.name] = seconds / len(entries)
        elif entries:
            (live if run.state == RUNNING else ended).append(seconds / len(entries))
    most = [sorted(ended)[math.ceil(0.9 * len(ended)) - 1]] if ended else live or list(controls.values()) or [0.0]
    typical = max(most)
    for path, run_ in budget._live.items():
        entries = run_folder.history(path)
        own = sum(x["time/epoch_s"] for x in entries) / len(entries) if entries else typical
        bound += own * (run_.until - len(entries))
    kd = controls.get("kd", max(typical, 0.0))
    champion = max(typical, controls.get("kd", 0.0))
    return spent, bound, 9 * (champion + kd + controls.get("none", champion))


class TestRules:
    def test_a_trial_is_stopped_at_its_rung_and_says_why(self, tmp_path: Path) -> None:
        # Controls, final runs, one first rung, and not the next.
        e = experiment(device_hours=EPOCH * (9 * 5.03 + 2.5) / 3600, eta=3)
        session = driven(tmp_path, e)
        session.run()
        (run, *more) = runs(tmp_path)
        assert (run.state, run.rung, len(run_folder.history(tmp_path / "trials" / "00000"))) == (PRUNED, 1, 1)
        assert run.reason is not None
        assert run.reason.startswith("stopped at its rung, epoch 1: 0.034 device-hours more would pass the budget of")
        assert len(more) <= 1
        (told, *_) = open_study(tmp_path / "optuna.log", "s").trials
        assert (told.state.name, list(told.intermediate_values)) == ("PRUNED", [1])
        assert session.said[0].startswith("budget 0.796167 device-hours: 0.3 ")
        assert session.said[-1].startswith("no more trials: ")

    def test_asha_says_nothing_of_a_budget(self, tmp_path: Path) -> None:
        driven(tmp_path, experiment(trials=8, device_hours=100.0)).run()
        assert {run.state for run in runs(tmp_path)} == {COMPLETE, PRUNED}
        assert {run.reason for run in runs(tmp_path)} == {None}

    @pytest.mark.parametrize(("scheduler", "epochs"), [("asha", 1), ("median", 1), ("none", 9)])
    def test_too_small_for_anything_it_still_tries_one(self, scheduler: str, epochs: int, tmp_path: Path) -> None:
        session = driven(tmp_path, experiment(scheduler=scheduler, device_hours=1e-6))
        session.run(concurrent=2)
        (run,) = runs(tmp_path)
        assert run.state == (COMPLETE if epochs == 9 else PRUNED)
        assert len(run_folder.history(tmp_path / "trials" / "00000")) == epochs
        assert [line.partition(":")[0] for line in session.said] == [
            "budget 1e-06 device-hours",
            "warning",
            "no more trials",
        ]
        assert "one trial is tried all the same" in session.said[1]

    def test_one_that_failed_is_no_winner(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        bad: list[Any] = []
        patch.setattr(simulated, "diverges", lambda values: len(bad) < 2 and bad.append(values) is None)
        driven(tmp_path, experiment(scheduler="none", device_hours=1e-6)).run(concurrent=3)
        assert [run.state for run in runs(tmp_path)] == [FAILED, FAILED, COMPLETE]

    def test_no_trial_starts_before_what_controls_take_is_known(self, tmp_path: Path) -> None:
        seen: list[tuple[str, int]] = []

        def look(folder: Path) -> None:
            epochs = [len(run_folder.history(p)) for p in folder.parents[1].glob("controls/*")]
            seen.append((folder.parent.name, min(epochs, default=0)))

        driven(tmp_path, experiment(device_hours=1.0, trials=3), on_start=look).run(concurrent=4)
        assert [part for part, _ in seen[:2]] == ["controls", "controls"]
        assert all(epochs >= 1 for part, epochs in seen if part == "trials")
        seen.clear()
        driven(tmp_path / "free", experiment(trials=3), on_start=look).run(concurrent=4)
        assert any(epochs == 0 for part, epochs in seen if part == "trials")

    def test_the_teacher_and_final_runs_count(self, tmp_path: Path) -> None:
        e = experiment(device_hours=1.0)
        assert Budget(e, tmp_path, teacher_s=120.0).spent == 120.0
        driven(tmp_path, e).run()
        before = Budget(e, tmp_path)
        final = Run("final", "champion seed 1")
        run_folder.create(tmp_path / "finals" / "champion-seed1", e, final)
        lines = [{"epoch": k, "time/epoch_s": 50.0, "time/devices": 2.0} for k in range(1, 10)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "finals" / "champion-seed1" / "history.jsonl").write_text(text, encoding="utf-8")
        after = Budget(e, tmp_path)
        assert after.spent == pytest.approx(before.spent + 900.0)
        # What final runs took comes out of what was set aside for them: an interruption then frees nothing.
        assert after.set_aside == pytest.approx(before.set_aside - 900.0)
        assert after.admits() is before.admits() is False

    def test_controls_are_set_aside_at_the_longest_schedule_of_the_space(self, tmp_path: Path) -> None:
        plain, stretched = experiment(device_hours=9.0), experiment(device_hours=9.0)
        stretched = stretched.__class__(
            **{**stretched.__dict__, "space": SPACE | {"train.epoch_factor": {"choices": [1, 3]}}}
        )
        driven(tmp_path, plain.__class__(**{**plain.__dict__, "search": experiment(trials=1).search})).run()
        one, three = Budget(plain, tmp_path), Budget(stretched, tmp_path)
        assert three.set_aside - one.set_aside == pytest.approx(2 * 9 * 2 * EPOCH)

    def test_unlimited_nothing_is_counted(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(budgets, "spent", lambda folder: pytest.fail("read for nothing"))
        driven(tmp_path, experiment(trials=3, price=2.0)).run()
        assert len(runs(tmp_path)) == 3

    def test_a_report_without_a_cost_counts_as_those_before(self, tmp_path: Path) -> None:
        e = experiment(device_hours=1.0)
        account = Budget(e, tmp_path)
        account.started(tmp_path / "controls" / "kd", "control")
        for epoch, seconds in ((1, 30.0), (1, 30.0), (2, None)):
            account.epoch(tmp_path / "controls" / "kd", epoch, seconds)
        assert account.spent == 60.0

    def test_what_an_epoch_costs_does_not_grow_with_the_study(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        read = [0]
        real = run_folder.history
        e = experiment(trials=40, device_hours=100.0, scheduler="none", epochs=3)
        session = driven(tmp_path, e)

        def counted(folder: Path) -> list[dict[str, float]]:
            read[0] += 1
            return real(folder)

        patch.setattr(budgets.run_folder, "history", counted)
        found = []
        real_ended = session.budget.ended

        def ended(folder: Path, state: str) -> None:
            real_ended(folder, state)
            found.append(read[0])
            read[0] = 0

        patch.setattr(session.budget, "ended", ended)
        session.run()
        assert len(found) == 42
        assert max(found[3:]) == min(found[3:]) == found[3]


class TestGoingOn:
    @pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
    @pytest.mark.parametrize("moment", [21, 26, 33, 40])
    def test_killed_and_resumed_equals_undisturbed(self, scheduler: str, moment: int, tmp_path: Path) -> None:
        class Killed(BaseException):
            pass

        e = experiment(scheduler=scheduler, device_hours=EPOCH * (9 * 5.2 + 26) / 3600)
        driven(tmp_path / "whole", e).run()
        count = [0]

        def die(folder: Path) -> None:
            count[0] += 1
            if count[0] == moment:
                raise Killed

        with pytest.raises(Killed):
            driven(tmp_path / "cut", e, on_epoch=die).run()
        driven(tmp_path / "cut", e).run()

        def kept(name: str) -> list[Any]:
            return [(r.name, r.parameters, r.state, r.rung, r.reason) for r in runs(tmp_path / name)]

        assert kept("cut") == kept("whole")
        assert 1 < len(kept("whole")) < 30
        assert any(r[4] for r in kept("whole")) or scheduler != "asha"

    def test_an_ended_search_stays_ended(self, tmp_path: Path) -> None:
        e = experiment(device_hours=EPOCH * (9 * 5.2 + 12) / 3600)
        driven(tmp_path, e).run()
        before = len(runs(tmp_path))
        again = driven(tmp_path, e)
        again.run(concurrent=2)
        assert again.started == []
        assert len(runs(tmp_path)) == before


class TestTime:
    def test_a_rung_that_would_end_late_is_not_started(self, tmp_path: Path) -> None:
        now = [0.0]

        def pass_time(folder: Path) -> None:
            now[0] += EPOCH

        # Controls, then trials of a minute an epoch; rungs 1, 3, 9.
        e = experiment(time_budget=EPOCH * (18 + 10.5), scheduler="median")
        session = driven(tmp_path, e, on_epoch=pass_time, elapsed=lambda: now[0])
        session.run()
        assert now[0] <= EPOCH * 28.5
        first, *others = runs(tmp_path)
        assert first.state == COMPLETE
        assert any("s more would pass the time budget" in (r.reason or "") for r in others)
        assert session.said[-1].startswith("no more trials: ")

    def test_earlier_sessions_count(self, tmp_path: Path) -> None:
        e = experiment(time_budget=1000.0, trials=3)
        session = driven(tmp_path, e, controls=False)
        session.run()
        late = driven(tmp_path / "late", e, controls=False, elapsed=lambda: 1000.0)
        late.run()
        assert (len(runs(tmp_path)), len(runs(tmp_path / "late"))) == (3, 1)
        assert "the time budget of 1000 s is used up; one trial is tried all the same" in late.said[0]

    def test_workers_share_an_epochs_seconds(self, tmp_path: Path) -> None:
        e = experiment(time_budget=100.0, workers_per_trial=2)
        account = Budget(e, tmp_path, elapsed=lambda: 50.0)
        assert account._late(99.0) is None
        assert account._late(101.0) is not None


class TestWords:
    def search(self, **search: Any) -> Any:
        return resolve({"search": search}).search

    def test_the_smaller_limit_binds(self) -> None:
        assert limit_of(self.search()) is None
        assert limit_of(self.search(price=2.0)) is None
        assert limit_of(self.search(device_hours=2.0)) == 7200.0
        assert limit_of(self.search(device_hours=2.0, cost=3.0, price=2.0)) == 5400.0
        assert limit_of(self.search(device_hours=1.0, cost=3.0, price=2.0)) == 3600.0
        assert limit_words(self.search(device_hours=1.0, cost=3.0, price=2.0)) == "1 device-hours"
        assert limit_words(self.search(cost=3.0, price=2.0)) == "a cost of 3 (1.5 device-hours at 2)"

    def test_what_was_spent_of_what(self) -> None:
        assert account(self.search(), 1.0, 10.0) == {}
        assert account_words({}) is None
        both = account(self.search(device_hours=0.5, cost=3.0, price=2.0, time_budget=60.0), 0.4321, 50.0)
        assert both == {
            "device_hours": {"limit": 0.5, "spent": 0.4321},
            "cost": {"limit": 3.0, "spent": 0.8642, "price": 2.0},
            "seconds": {"limit": 60.0, "spent": 50.0},
        }
        assert account_words(both) == "0.432 of 0.5 device-hours; cost 0.864 of 3, at 2 a device-hour; 50 of 60 s"
        assert account_words(account(self.search(price=2.0), 0.25, 5.0)) == "cost 0.5, at 2 a device-hour"
        over = account(self.search(device_hours=0.1), 0.25, 5.0)
        assert account_words(over) == "0.25 of 0.1 device-hours, passed by the final runs"

    def test_what_it_would_allow(self) -> None:
        assert allows(self.search(trials=40), 3600.0, 360.0, 36.0) is None
        few = allows(self.search(trials=40, device_hours=2.0), 3600.0, 360.0, 36.0)
        assert few is not None
        assert few.startswith("the budget of 2 device-hours allows about 10 of 40 trials: ")
        assert few.endswith("all but the trials takes about 1 device-hours, a trial 0.1 device-hours on average")
        enough = allows(self.search(trials=4, device_hours=2.0), 3600.0, 360.0, 36.0)
        assert enough is not None
        assert "is enough for all 4 trials: 1.4 device-hours" in enough
        small = allows(self.search(device_hours=0.5), 3600.0, 360.0, 36.0)
        assert small is not None
        assert "would be passed" in small
        assert "one trial would be tried all the same" in small


def test_confirmation_is_set_aside_until_it_begins(tmp_path: Path) -> None:
    aside = {}
    for confirm in (0, 3):
        more = {"confirm_seeds": 2} if confirm else {}
        account = Budget(experiment(confirm=confirm, device_hours=100, **more), tmp_path)
        account.started(tmp_path / "trials" / "00000", "trial")
        account.epoch(tmp_path / "trials" / "00000", 1, EPOCH)
        aside[confirm] = account.set_aside
    assert aside[3] - aside[0] == pytest.approx(3 * 2 * 9 * EPOCH)
    bound = account.bound
    account.started(tmp_path / "confirm" / "00000-seed101", "confirm")
    assert account.set_aside == pytest.approx(aside[3] - 9 * EPOCH)
    assert account.bound == pytest.approx(bound + 9 * EPOCH)
