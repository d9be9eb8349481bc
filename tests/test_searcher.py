"""The searcher driven by hand against a simulated objective: learning curves with a known optimum, no Ray, no torch."""

from __future__ import annotations

import copy
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from akd import checkpoint, starts
from akd import folder as run_folder
from akd import searcher as searcher_module
from akd import space as space_module
from akd.config import Experiment, resolve
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.searcher import StudySearcher, make_sampler, open_study, ranking
from akd.space import parse
from akd.warm import First

FLAT = {
    "train.lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "method.host.weight": {"type": "float", "low": 0.1, "high": 10.0, "log": True},
    "train.nesterov": {"choices": [True, False]},
}
CONDITIONAL = {
    "train.lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "method.host.name": {"choices": ["kd", "none"]},
    "method.host.weight": {"type": "float", "low": 0.1, "high": 10.0, "log": True, "when": {"method.host.name": "kd"}},
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.decay_epochs": {"choices": [[1], [1, 2]], "when": {"train.schedule": ["step"]}},
}


def experiment(space: dict[str, Any] = FLAT, epochs: int = 3, **search: Any) -> Experiment:
    return resolve(
        {
            "train": {"epochs": epochs, "batch_size": 8},
            "search": {"trials": 4, "grace": 1, "confirm": 0, **search},
            "space": space,
        }
    )


def final_accuracy(values: dict[str, Any]) -> float:
    """Best, 0.9, at lr 0.1 and weight 1 with momentum of Nesterov; falls with the distance."""
    miss = math.log10(values["train.lr"] / 0.1) ** 2 + math.log10(values.get("method.host.weight", 0.3)) ** 2
    miss += 0 if values.get("train.nesterov") else 0.3
    return 0.9 * math.exp(-miss)


def accuracy(values: dict[str, Any], epoch: int) -> float:
    """A learning curve that never crosses another of the same epoch."""
    return final_accuracy(values) * (1 - 0.5**epoch)


class Killed(BaseException):
    """Stands for SIGKILL: nothing between it and the test handles it."""


class Session:
    """One process of a search: what Tune and the trainer do around a StudySearcher."""

    def __init__(
        self,
        folder: Path,
        e: Experiment,
        clock: Callable[[], float] = lambda: 0.0,
        controls: bool = True,
        first: Sequence[First] = (),
    ):
        self.folder, self.experiment = folder, e
        named = {n: resolve(e.to_dict() | {"method": n}, strict=False) for n in ("none", "kd")} if controls else {}
        folder.mkdir(parents=True, exist_ok=True)
        self.study = open_study(folder / "optuna.log", "s")
        self.changes: list[Path] = []
        self.searcher = StudySearcher(e, parse(e), self.study, folder, named, self.changes.append, clock, first=first)
        self.order: list[str] = []
        self._ids = (f"tune{i}" for i in itertools.count())

    def start(self) -> tuple[str, dict[str, Any]] | None:
        trial_id = next(self._ids)
        config = self.searcher.suggest(trial_id)
        if config is None or config == Searcher.FINISHED:
            return None
        self.order.append(config["name"])
        return trial_id, config

    def luck(self, folder: Path) -> float:
        """What a run's seed adds to its accuracy."""
        return 0.0

    def epochs(self, trial_id: str, config: dict[str, Any]) -> Iterator[str | None]:
        """Train as ``folder.train`` does: first report again what is kept. Yields after every epoch; ends the run."""
        folder = Path(config["folder"])
        run = Run.read(folder)
        assert run is not None
        known = run_folder.history(folder)
        epoch = int(known[-1]["epoch"]) if known else 0
        if known:
            self.report(trial_id, known[-1])
        while epoch < self.experiment.train.epochs:
            # Both rules depend on the configuration alone, so that a search that goes on decides the same.
            if epoch == 2 and run.kind == "trial" and final_accuracy(run.parameters) < 0.2:
                break
            if run.kind == "trial" and run.parameters["train.lr"] > 0.7:
                self.searcher.on_trial_complete(trial_id, {"failed": "diverged"})
                return
            epoch += 1
            values = run.parameters or {"train.lr": 0.1}
            entry = {"epoch": epoch, "at": float(epoch), "val/accuracy": accuracy(values, epoch) + self.luck(folder)}
            append(folder, entry)
            self.report(trial_id, entry)
            yield None
        self.searcher.on_trial_complete(trial_id, {"epoch": epoch})

    def report(self, trial_id: str, entry: dict[str, float]) -> None:
        self.searcher.on_trial_result(trial_id, {"epoch": entry["epoch"], "val_accuracy": entry["val/accuracy"]})

    def run(self, concurrent: int = 1) -> None:
        """Until the searcher has no more, ``concurrent`` at a time, an epoch each in turn."""
        busy: list[Iterator[str | None]] = []
        while True:
            while len(busy) < concurrent and (started := self.start()) is not None:
                busy.append(self.epochs(*started))
            if not busy:
                return
            busy = [b for b in busy if next(b, "ended") is None]


def append(folder: Path, entry: dict[str, float]) -> None:
    with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def trials_of(folder: Path) -> list[tuple[Any, ...]]:
    """What Optuna knows of every trial."""
    told = open_study(folder / "optuna.log", "s").trials
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in told]


def folders_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What the folders say of every run."""
    found = {}
    for path in sorted(folder.glob("*/*/run.json")):
        run = Run.read(path.parent)
        assert run is not None
        entries = [(e["epoch"], e["val/accuracy"]) for e in run_folder.history(path.parent)]
        text = (path.parent / "experiment.yaml").read_text(encoding="utf-8")
        found[run.name] = (run.kind, run.number, run.parameters, run.state, run.reason, run.rung, entries, text)
    return found


class TestOrder:
    def test_controls_come_first_and_are_neither_told_nor_counted(self, tmp_path: Path) -> None:
        session = Session(tmp_path, experiment(trials=3))
        session.run()
        assert session.order == ["control none", "control kd", "trial 0", "trial 1", "trial 2"]
        assert [t[0] for t in trials_of(tmp_path)] == [0, 1, 2]
        for name in ("none", "kd"):
            run = Run.read(tmp_path / "controls" / name)
            assert run is not None
            assert (run.kind, run.state, run.rung) == ("control", COMPLETE, 3)

    def test_ends_are_told_with_every_intermediate_value(self, tmp_path: Path) -> None:
        Session(tmp_path, experiment(trials=30, sampler="random")).run()
        kept = {r[1]: r for r in folders_of(tmp_path).values() if r[0] == "trial"}
        seen = set()
        for number, state, _, values, intermediate in trials_of(tmp_path):
            _, _, parameters, kept_state, _, rung, entries, _ = kept[number]
            assert {"FAIL": FAILED}.get(state, state) == kept_state
            assert intermediate == dict(entries)
            seen.add(state)
            if state == "COMPLETE":
                assert values == [accuracy(parameters, 3)]
                assert rung == 3
            elif state == "PRUNED":  # the epoch it was stopped at is told too
                assert sorted(intermediate) == [1, 2]
                assert rung == 1
            else:
                assert values is None
        assert seen == {"COMPLETE", "PRUNED", "FAIL"}

    def test_a_reason_is_kept(self, tmp_path: Path) -> None:
        for number, (how, reason) in enumerate(
            [
                (({"failed": "diverged in epoch 1"}, False), "diverged in epoch 1"),
                (({}, False), "the worker process died"),  # ended without a single epoch
            ]
        ):
            session = Session(tmp_path, experiment(trials=3), controls=False)
            started = session.start()
            assert started is not None
            session.searcher.on_trial_complete(started[0], how[0], error=how[1])
            run = Run.read(tmp_path / "trials" / f"{number:05d}")
            assert run is not None
            assert (run.state, run.reason) == (FAILED, reason)
        assert [t[1] for t in trials_of(tmp_path)] == ["FAIL"] * 2

    def test_a_run_whose_process_is_gone_before_it_begins_is_handed_out_again(self, tmp_path: Path) -> None:
        """Tune gives up a trial whose warm process died while nobody used it."""
        session = Session(tmp_path, experiment(trials=1), controls=False)
        for _ in range(starts.MOST):
            started = session.start()
            assert started is not None
            assert started[1]["name"] == "trial 0"
            assert session.searcher.suggest("more") is None, "there may be more to do"
            assert trials_of(tmp_path)[0][1] == "RUNNING"
            session.searcher.on_trial_complete(started[0], None, error=True)
        assert session.searcher.suggest("more") == Searcher.FINISHED
        run = Run.read(tmp_path / "trials" / "00000")
        assert run is not None
        assert (run.state, run.reason) == (FAILED, "the worker process died")
        assert [t[1] for t in trials_of(tmp_path)] == ["FAIL"]

    def test_every_start_and_end_is_announced(self, tmp_path: Path) -> None:
        session = Session(tmp_path, experiment(trials=1), controls=False)
        session.run()
        assert session.changes == [tmp_path / "trials" / "00000"] * 2

    def test_an_epoch_reported_twice_is_told_once(self, tmp_path: Path) -> None:
        session = Session(tmp_path, experiment(trials=1), controls=False)
        started = session.start()
        assert started is not None
        for value in (0.25, 0.75):
            session.searcher.on_trial_result(started[0], {"epoch": 1, "val_accuracy": value})
        session.searcher.on_trial_result(started[0], {"failed": "out of memory"})
        assert session.study.trials[0].intermediate_values == {1: 0.25}

    def test_unknown_trials_are_passed_over(self, tmp_path: Path) -> None:
        session = Session(tmp_path, experiment())
        session.searcher.on_trial_result("nobody", {"epoch": 1, "val_accuracy": 0.5})
        session.searcher.on_trial_complete("nobody", {"epoch": 1})
        assert trials_of(tmp_path) == []


class TestBudgets:
    def test_trials_are_counted_over_sessions(self, tmp_path: Path) -> None:
        Session(tmp_path, experiment(trials=2)).run()
        again = Session(tmp_path, experiment(trials=2))
        assert again.start() is None
        more = Session(tmp_path, experiment(trials=3))
        more.run()
        assert more.order == ["trial 2"]

    def test_no_new_trial_after_the_time(self, tmp_path: Path) -> None:
        now = [1000.0]
        session = Session(tmp_path, experiment(trials=50, time_budget=60.0), clock=lambda: now[0])
        now[0] += 61  # controls are part of a study, whatever the time, and so is one trial to be the winner
        assert [session.start() is not None for _ in range(4)] == [True, True, True, False]
        other = Session(tmp_path / "other", experiment(trials=50, time_budget=60.0), lambda: now[0], controls=False)
        now[0] += 59.9
        assert other.start() is not None
        now[0] += 0.1
        assert other.start() is None

    def test_unfinished_trials_are_finished_whatever_the_time(self, tmp_path: Path) -> None:
        now = [0.0]
        first = Session(tmp_path, experiment(time_budget=60.0), lambda: now[0], controls=False)
        assert first.start() is not None
        second = Session(tmp_path, experiment(time_budget=60.0), lambda: now[0], controls=False)
        now[0] = 100.0
        second.run()
        assert second.order == ["trial 0"]
        assert trials_of(tmp_path)[0][1] in ("COMPLETE", "PRUNED", "FAIL")

    def test_closed_gives_nothing_more(self, tmp_path: Path) -> None:
        session = Session(tmp_path, experiment())
        assert session.start() is not None
        session.searcher.closed = True
        assert session.start() is None
        assert not (tmp_path / "controls" / "kd").exists()


def count_writes(monkeypatch: pytest.MonkeyPatch, allowed: float) -> list[int]:
    """Kill the process at its first write to disk after ``allowed`` of them; the list holds how many there were."""
    count = [0]

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kw: Any) -> Any:
            if count[0] >= allowed:
                raise Killed
            count[0] += 1
            return real(*args, **kw)

        monkeypatch.setattr(owner, name, counted)

    before(JournalFileBackend, "append_logs")  # ask, each parameter, each intermediate value, tell
    before(checkpoint, "write_text")  # experiment.yaml, run.json at start and end
    before(__import__(__name__), "append")  # history.jsonl
    return count


class TestInterruption:
    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    @pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
    def test_killed_at_any_write_equals_undisturbed(
        self, sampler: str, space: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Six trials: the sampler's four at random and two that learn from them.
        e = experiment(space, trials=6, sampler=sampler, seed=2)
        with monkeypatch.context() as patch:
            count = count_writes(patch, math.inf)
            Session(tmp_path / "whole", e).run()
        wanted, kept = trials_of(tmp_path / "whole"), folders_of(tmp_path / "whole")
        assert len(wanted) == 6
        # Every seventh moment, others in each case: between them all kinds of moments are met.
        for moment in range(2 * (sampler == "tpe") + 3 * (space is FLAT), count[0], 7):
            folder = tmp_path / f"cut{moment}"
            with monkeypatch.context() as patch:
                count_writes(patch, moment)
                with pytest.raises(Killed):
                    Session(folder, e).run()
            second = Session(folder, e)
            second.run()
            assert trials_of(folder) == wanted, f"killed at write {moment}"
            assert folders_of(folder) == kept, f"killed at write {moment}"

    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    @pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
    def test_killed_between_two_parameters_draws_the_same(
        self, sampler: str, space: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        e = experiment(space, trials=1, sampler=sampler)
        Session(tmp_path / "whole", e).run()
        real, calls = space_module.Parameter.suggest, [0]

        def dying(self: space_module.Parameter, trial: Any) -> Any:
            calls[0] += 1
            if calls[0] == moment:
                raise Killed
            return real(self, trial)

        for moment in (1, 2, 3):
            calls[0] = 0
            with monkeypatch.context() as patch:
                patch.setattr(space_module.Parameter, "suggest", dying)
                with pytest.raises(Killed):
                    Session(tmp_path / f"cut{moment}", e, controls=False).run()
            assert trials_of(tmp_path / f"cut{moment}") == []  # a suggestion is in the journal as a whole or not at all
            Session(tmp_path / f"cut{moment}", e).run()
            assert trials_of(tmp_path / f"cut{moment}") == trials_of(tmp_path / "whole")

    def test_ended_in_its_folder_but_not_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        e = experiment(trials=2)

        def dying(*args: Any, **kw: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", dying)
            with pytest.raises(Killed):
                Session(tmp_path, e, controls=False).run()
        ended = Run.read(tmp_path / "trials" / "00000")
        assert ended is not None
        assert ended.state != RUNNING
        told: list[int] = []
        real = optuna.Study.tell

        def counted(self: optuna.Study, trial: Any, *args: Any, **kw: Any) -> Any:
            told.append(trial)
            return real(self, trial, *args, **kw)

        monkeypatch.setattr(optuna.Study, "tell", counted)
        second = Session(tmp_path, e, controls=False)
        assert told == [0]  # told from its folder before anything new is asked
        second.run()
        assert second.order == ["trial 1"]
        Session(tmp_path, e, controls=False)
        assert told == [0, 1]

    def test_unfinished_ones_come_before_new_ones_oldest_first(self, tmp_path: Path) -> None:
        first = Session(tmp_path, experiment(trials=5))
        for _ in range(5):
            assert first.start() is not None
        second = Session(tmp_path, experiment(trials=5))
        second.run(concurrent=2)
        assert second.order == ["control none", "control kd", "trial 0", "trial 1", "trial 2", "trial 3", "trial 4"]
        third = Session(tmp_path, experiment(trials=5))
        third.run()
        assert third.order == []

    def test_a_trial_put_into_the_study_by_hand_is_run_with_its_values(self, tmp_path: Path) -> None:
        open_study(tmp_path / "optuna.log", "s").enqueue_trial({"train.lr": 0.5, "train.nesterov": False})
        session = Session(tmp_path, experiment(trials=2), controls=False)
        session.run()
        assert session.order == ["trial 0", "trial 1"]
        params = trials_of(tmp_path)[0][2]
        assert (params["train.lr"], params["train.nesterov"]) == (0.5, False)
        assert 0.1 <= params["method.host.weight"] <= 10

    def test_half_a_line_in_the_journal_is_no_obstacle(self, tmp_path: Path) -> None:
        e = experiment(trials=3)
        Session(tmp_path / "whole", e).run()
        first = Session(tmp_path / "cut", e)
        for _ in range(3):
            started = first.start()
            assert started is not None
            list(first.epochs(*started))
        with open(tmp_path / "cut" / "optuna.log", "a", encoding="utf-8") as file:
            file.write('{"op_code":4,"wor')  # a full disk, a power cut
        Session(tmp_path / "cut", e).run()
        assert trials_of(tmp_path / "cut") == trials_of(tmp_path / "whole")

    @pytest.mark.parametrize("seed", range(3))
    def test_three_at_a_time_killed_again_and_again_loses_and_doubles_nothing(
        self, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        e = experiment(CONDITIONAL, trials=12, seed=seed)
        for allowed in itertools.count(13 + seed, 9):
            with monkeypatch.context() as patch:
                count_writes(patch, allowed)
                try:
                    Session(tmp_path, e).run(concurrent=3)
                except Killed:
                    continue
            break
        told = trials_of(tmp_path)
        assert [t[0] for t in told] == list(range(12))
        kept = [r for r in folders_of(tmp_path).values() if r[0] == "trial"]
        assert [r[1] for r in kept] == list(range(12))
        for (_, state, params, _, intermediate), run in zip(told, kept, strict=True):
            assert state in ("COMPLETE", "PRUNED", "FAIL")
            assert {"FAIL": FAILED}.get(state, state) == run[3]
            assert intermediate == dict(run[6])
            assert params["train.lr"] == run[2]["train.lr"]
            epochs = [epoch for epoch, _ in run[6]]
            assert epochs == list(range(1, len(epochs) + 1))

    def test_nothing_of_it_goes_into_a_pickle(self, tmp_path: Path) -> None:
        # Tune pickles its searcher into snapshots; an open journal or a callback in it would end the search.
        assert Session(tmp_path, experiment()).searcher.__getstate__() == {}


class TestSampler:
    def test_suggestions_depend_on_seed_and_number_alone(self, tmp_path: Path) -> None:
        found = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            Session(tmp_path / name, experiment(trials=6, seed=seed), controls=False).run()
            found.append([t[2] for t in trials_of(tmp_path / name)])
        assert found[0] == found[1]
        assert all(a != c for a, c in zip(found[0], found[2], strict=True))
        assert len({t["train.lr"] for t in found[0]}) == 6

    def test_running_trials_count_against_their_place(self, tmp_path: Path) -> None:
        """A failed trial says nothing of its place, a running one that somebody is there: the next is another."""
        found = []
        for name in ("running", "failed"):
            session = Session(tmp_path / name, experiment(trials=30, epochs=1), controls=False)
            for number in range(22):
                started = session.start()
                assert started is not None
                if number < 20:
                    list(session.epochs(*started))
                elif name == "failed":
                    session.searcher.on_trial_complete(started[0], {"failed": "diverged"})
            found.append([t[2] for t in trials_of(tmp_path / name)])
        assert found[0][:21] == found[1][:21]
        assert found[0][21] != found[1][21]

    @pytest.mark.parametrize(("epochs", "shown"), [(1, "RUNNING"), (2, "PRUNED"), (3, "PRUNED")])
    def test_a_running_trial_that_came_to_a_rung_counts_with_what_it_has(
        self, epochs: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[FrozenTrial]] = []
        real = searcher_module.scratch_trial

        def watched(past: list[FrozenTrial], *args: Any) -> Any:
            seen.append(list(past))
            return real(past, *args)

        monkeypatch.setattr(searcher_module, "scratch_trial", watched)
        session = Session(tmp_path, experiment(trials=30, epochs=6, grace=2, seed=1), controls=False)
        started = session.start()
        assert started is not None
        running = session.epochs(*started)
        for _ in range(epochs):
            next(running)
        assert session.start() is not None
        (trial,) = seen[-1]
        assert (trial.state.name, len(trial.intermediate_values), trial.number) == (shown, epochs, 0)
        assert [t[1] for t in trials_of(tmp_path)] == ["RUNNING", "RUNNING"]  # the study knows better

    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    @pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
    def test_beside_the_study_as_on_a_copy_of_it(self, sampler: str, space: dict[str, Any], tmp_path: Path) -> None:
        """A sampler sees every trial, running ones too, whether it draws beside the study or in a copy of it."""
        e = experiment(space, trials=30, sampler=sampler, seed=5)
        session = Session(tmp_path, e, controls=False)
        for number in range(30):
            past = session.study.get_trials(deepcopy=False)
            copied = optuna.create_study(direction="maximize", sampler=make_sampler(e, len(past)))
            copied.add_trials(past)
            wanted = parse(e)(copied.ask())
            started = session.start()
            assert started is not None
            run = Run.read(Path(started[1]["folder"]))
            assert run is not None
            assert run.parameters == wanted
            if number % 5:  # every fifth goes on running
                list(session.epochs(*started))
        assert {"COMPLETE", "PRUNED", "RUNNING"} <= {t[1] for t in trials_of(tmp_path)}

    def test_a_suggestion_is_one_write_and_copies_no_trial(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many trials there are: what a suggestion costs besides the sampler does not grow with the study."""
        session = Session(tmp_path, experiment(CONDITIONAL, trials=40), controls=False)
        copied, writes = [0], count_writes(monkeypatch, math.inf)
        deep = copy.deepcopy

        def counted(x: Any, *rest: Any) -> Any:
            copied[0] += any(isinstance(t, FrozenTrial) for t in (x if isinstance(x, list) else [x]))
            return deep(x, *rest)

        monkeypatch.setattr(copy, "deepcopy", counted)
        found = []
        for _ in range(40):
            before, copies = writes[0], copied[0]
            started = session.start()
            assert started is not None
            found.append((writes[0] - before, copied[0] - copies))
            list(session.epochs(*started))
        assert found == [(1 + 2, 0)] * 40  # the journal's line, experiment.yaml and run.json

    def test_names(self) -> None:
        assert isinstance(make_sampler(experiment(sampler="random"), 0), optuna.samplers.RandomSampler)
        assert isinstance(make_sampler(experiment(sampler="tpe"), 0), optuna.samplers.TPESampler)

    def test_tpe_comes_closer_to_the_optimum_than_random(self, tmp_path: Path) -> None:
        def best(sampler: str, seed: int) -> float:
            e = experiment(trials=30, epochs=1, sampler=sampler, seed=seed)
            folder = tmp_path / f"{sampler}{seed}"
            Session(folder, e, controls=False).run()
            return max(t[3][0] for t in trials_of(folder) if t[1] == "COMPLETE")

        optimum = 0.9 * 0.5
        missed = {s: statistics.fmean(optimum - best(s, seed) for seed in range(3)) for s in ("tpe", "random")}
        assert 0 <= missed["tpe"] < 0.7 * missed["random"]


class TestRanking:
    def put(self, study: Path, number: int, state: str, accuracies: list[float]) -> None:
        folder = study / "trials" / f"{number:05d}"
        run_folder.create(folder, experiment(), Run("trial", f"trial {number}", number=number, state=state))
        for epoch, value in enumerate(accuracies, 1):
            append(folder, {"epoch": epoch, "at": 0.0, "val/accuracy": value})

    def test_rules(self, tmp_path: Path) -> None:
        self.put(tmp_path, 0, PRUNED, [0.99])  # good, but it never ran to the end
        self.put(tmp_path, 1, COMPLETE, [0.1, 0.9, 0.5])  # the last epoch counts, not the best
        self.put(tmp_path, 2, FAILED, [0.9, 0.9])
        self.put(tmp_path, 3, COMPLETE, [0.1, 0.2, 0.6])
        self.put(tmp_path, 4, RUNNING, [0.9, 0.9, 0.9])
        self.put(tmp_path, 5, PRUNED, [0.2, 0.3])
        self.put(tmp_path, 6, COMPLETE, [0.1, 0.2, 0.6])  # a tie goes to the earlier
        self.put(tmp_path, 7, FAILED, [])
        ranked = ranking(tmp_path)
        assert [run.number for run, _, _ in ranked] == [3, 6, 1, 5, 0]
        assert [(value, epochs) for _, value, epochs in ranked] == [(0.6, 3), (0.6, 3), (0.5, 3), (0.3, 2), (0.99, 1)]

    def test_nothing_to_rank(self, tmp_path: Path) -> None:
        assert ranking(tmp_path) == []
        self.put(tmp_path, 0, FAILED, [])
        assert ranking(tmp_path) == []


def test_a_journal_opens_again_as_it_was(tmp_path: Path) -> None:
    Session(tmp_path, experiment(trials=1), controls=False).run()
    study = open_study(tmp_path / "optuna.log", "s")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [t.state for t in study.trials] == [t.state for t in open_study(tmp_path / "optuna.log", "s").trials]
    assert study.trials[0].state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class TestALostJournal:
    """A study that another machine steered comes without Optuna's journal: the folders have all of it."""

    @pytest.mark.parametrize("space", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
    def test_goes_on_as_if_it_were_there(self, space: dict[str, Any], tmp_path: Path) -> None:
        e = experiment(space, trials=6, seed=2)
        Session(tmp_path / "whole", e).run()
        wanted = trials_of(tmp_path / "whole")
        first = Session(tmp_path / "cut", e)
        for started in iter(first.start, None):
            epochs = first.epochs(*started)
            if started[1]["name"] == "trial 4":  # in its second epoch
                next(epochs)
                break
            list(epochs)
        (tmp_path / "cut" / "optuna.log").unlink()
        second = Session(tmp_path / "cut", e)
        second.run()
        assert second.order[0] == "trial 4"
        assert trials_of(tmp_path / "cut") == wanted
        assert folders_of(tmp_path / "cut") == folders_of(tmp_path / "whole")


class TestFullDisk:
    """A trial that met a full disk is not failed: the search ends in order and it goes on where there is space."""

    def full(self, folder: Path) -> Session:
        one = Session(folder, experiment(), controls=False)
        one.ended = []  # type: ignore[attr-defined]
        one.searcher.on_full = lambda: one.ended.append(1)  # type: ignore[attr-defined]
        return one

    @pytest.mark.parametrize(
        "reason",
        [
            "[Errno 28] No space left on device: '/runs/s/trials/00000/checkpoints'",
            "[Errno 122] Disk quota exceeded",
            "Error while serializing: I/O error: No space left on device (os error 28)",
        ],
    )
    def test_told_by_a_trial(self, reason: str, tmp_path: Path) -> None:
        one = self.full(tmp_path)
        first, second = one.start(), one.start()
        assert first is not None
        assert second is not None
        before = (tmp_path / "optuna.log").read_bytes()
        one.searcher.on_trial_complete(first[0], {"failed": reason})
        assert (one.searcher.full, one.ended) == (reason, [1])  # type: ignore[attr-defined]
        append(Path(second[1]["folder"]), {"epoch": 3, "at": 0.0, "val/accuracy": 0.5})
        one.searcher.on_trial_result(second[0], {"epoch": 3, "val_accuracy": 0.5})
        one.searcher.on_trial_complete(second[0], {"epoch": 3})  # what ends meanwhile is told by the next session
        assert one.start() is None
        assert (tmp_path / "optuna.log").read_bytes() == before
        for number in (0, 1):
            run = Run.read(tmp_path / "trials" / f"{number:05d}")
            assert run is not None
            assert run.state == RUNNING
        again = Session(tmp_path, experiment(), controls=False)
        while (started := again.start()) is not None:
            for _ in again.epochs(*started):
                pass
        assert again.order[:2] == ["trial 0", "trial 1"]
        assert len(again.study.trials) == 4
        assert not [t for t in again.study.trials if not t.state.is_finished()]

    @pytest.mark.parametrize("where", ["suggest", "result", "end"])
    def test_met_by_the_studys_own_records(self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half a line stays in the journal: the next session cuts it off."""
        one = self.full(tmp_path)
        started = one.start()
        assert started is not None
        append(Path(started[1]["folder"]), {"epoch": 3, "at": 0.0, "val/accuracy": 0.5})

        def half(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            with open(tmp_path / "optuna.log", "ab") as file:
                file.write(json.dumps(logs[0]).encode()[:20])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(JournalFileBackend, "append_logs", half)
            if where == "suggest":
                assert one.start() is None
            elif where == "result":
                one.searcher.on_trial_result(started[0], {"epoch": 3, "val_accuracy": 0.5})
            else:
                one.searcher.on_trial_complete(started[0], {"epoch": 3})
        assert one.ended == [1]  # type: ignore[attr-defined]
        one.searcher.on_trial_complete(started[0], {"epoch": 3})
        again = Session(tmp_path, experiment(), controls=False)
        while (more := again.start()) is not None:
            for _ in again.epochs(*more):
                pass
        assert [t.state.is_finished() for t in again.study.trials] == [True] * 4
        assert again.study.trials[0].intermediate_values == {3: 0.5}

    def test_another_error_is_not_taken_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one = self.full(tmp_path)

        def denied(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(JournalFileBackend, "append_logs", denied)
        with pytest.raises(PermissionError):
            one.start()
        assert one.searcher.full is None
