"""The race that names the winner: what it drops, that folders alone decide it, and that a search runs it."""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_study
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher
from test_searcher import Killed, Session, count_writes, experiment, folders_of, trials_of

import akd
from akd import confirm
from akd.champion import final_seeds
from akd.config import resolve
from akd.confirm import behind, epochs_left, folder_of, race, seeds, summary
from akd.errors import ExperimentError
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.report import facts, formats, verify
from akd.result import StudyResult
from akd.searcher import ranking
from akd.summary import closing_lines

SCORES = st.floats(0.0, 1.0, allow_nan=False).map(lambda x: round(x, 4))


def put(
    study: Path, run: Run, accuracy: float, epochs: int = 3, state: str = COMPLETE, reason: str | None = None
) -> Path:
    """A run's folder that ended (or did not)."""
    kind = {"trial": "trials", "confirm": "confirm"}[run.kind]
    folder = study / kind / (f"{run.number:05d}" if run.kind == "trial" else run.name)
    folder.mkdir(parents=True)
    lines = [json.dumps({"epoch": e, "at": 0.0, "val/accuracy": accuracy}) for e in range(1, epochs + 1)]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.end(folder, state, reason)
    return folder


def searched(study: Path, accuracies: list[float], stopped: int = 0) -> None:
    """Finished trials, and some that were stopped with a higher accuracy."""
    for number, accuracy in enumerate(accuracies):
        put(study, Run("trial", f"trial {number}", number=number), accuracy)
    for number in range(len(accuracies), len(accuracies) + stopped):
        put(study, Run("trial", f"trial {number}", number=number), 0.99, 1, PRUNED)


def ran(study: Path, number: int, seed: int, accuracy: float, state: str = COMPLETE, reason: str | None = None) -> None:
    put(study, Run("confirm", folder_of(study, number, seed).name), accuracy, 3, state, reason)


def stands(study: Path, unfinished: int = 0, **search: Any) -> confirm.Race:
    e = experiment(trials=8, **{"confirm": 3, "confirm_seeds": 3, **search})
    return race(study, e, ranking(study), unfinished)


class TestSeeds:
    def test_are_nobody_elses(self) -> None:
        for seed in (0, 7, 95, 101):
            e = resolve({"train": {"seed": 102}, "search": {"seed": seed, "confirm_seeds": 9, "champion_seeds": 8}})
            found = seeds(e)
            assert len(set(found)) == 9
            assert not {seed, e.train.seed, *final_seeds(e)} & set(found)
            assert found == seeds(e)

    def test_images_stay_the_searchs(self) -> None:
        e = experiment()
        made = confirm.seeded(e, {"train.lr": 0.3}, 101)
        assert (made.train.seed, made.train.plan_seed, made.train.lr) == (101, e.train.plan_seed, 0.3)


class TestRule:
    def test_one_seed_drops_only_what_is_beyond_twice_any_noise_seen(self) -> None:
        search = {1: 0.95, 2: 0.94, 3: 0.93}
        assert behind({1: [0.94], 2: [0.93], 3: [0.91]}, search) == set()  # noise 2 points, gap 3
        assert behind({1: [0.95], 2: [0.93], 3: [0.925]}, search) == {3}  # noise 1 point, gaps 2 and 2.5
        assert behind({1: [0.95], 2: [0.50], 3: [0.93]}, search) == set()  # a fall of its own is noise seen, too

    def test_more_seeds_allow_less(self) -> None:
        search = {1: 0.95, 2: 0.94}
        scores = {1: [0.95, 0.94, 0.95, 0.94], 2: [0.93, 0.94, 0.93, 0.94]}
        assert behind({n: s[:1] for n, s in scores.items()}, search) == set()
        assert behind(scores, search) == set()  # a gap of one point, which is the noise
        assert behind({1: scores[1], 2: [0.93, 0.93, 0.93, 0.93]}, search) == {2}

    @settings(max_examples=300, deadline=None)
    @given(st.lists(SCORES, min_size=2, max_size=8), st.integers(1, 6))
    def test_without_noise_the_best_stays_and_all_others_go(self, true: list[float], n: int) -> None:
        gone = behind({k: [v] * n for k, v in enumerate(true)}, dict(enumerate(true)))
        assert gone == {k for k, v in enumerate(true) if v < max(true)}

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=2, max_size=6), st.randoms())
    def test_the_leader_stays_and_order_does_not_matter(self, cells: list[list[float]], draw: random.Random) -> None:
        scores, search = {k: c[1:] for k, c in enumerate(cells)}, {k: c[0] for k, c in enumerate(cells)}
        gone = behind(scores, search)
        best = max(statistics.fmean(s) for s in scores.values())
        assert all(statistics.fmean(scores[k]) < best for k in gone)
        names = list(scores)
        draw.shuffle(names)
        assert behind({k: scores[k] for k in names}, search) == gone

    @pytest.mark.parametrize(("k", "n", "trials"), [(2, 2, 8), (3, 2, 8), (3, 3, 8), (3, 3, 40), (5, 5, 40)])
    @pytest.mark.parametrize("images", [None, 360], ids=["exact", "360 images"])
    @pytest.mark.parametrize("spread", [0.0, 1.0, 4.0], ids=["equal", "near", "apart"])
    def test_how_often_noise_drops_the_best(
        self, k: int, n: int, trials: int, images: int | None, spread: float
    ) -> None:
        """Whole searches: true values, noisy scores, the race of the best k. Seeds differ by 0.25 points."""
        draw, dropped, races, plain, confirmed = random.Random(5), 0, 2000, 0.0, 0.0

        def measure(value: float) -> float:
            found = 0.97 + 0.0025 * (value + draw.gauss(0, 1))
            return round(found * images) / images if images else found

        for _ in range(races):
            true = [draw.gauss(0, spread) for _ in range(trials)]
            scores = [measure(v) for v in true]
            chosen = sorted(range(trials), key=lambda t: -scores[t])[:k]
            told = {t: [measure(true[t]) for _ in range(n)] for t in chosen}
            order = range(n)
            left = confirm._decided(
                {t: dict(enumerate(s)) for t, s in told.items()}, {t: scores[t] for t in chosen}, order
            )[-1]
            best = max(chosen, key=lambda t: true[t])
            dropped += best not in left and true[best] > max(true[t] for t in left)
            plain += true[chosen[0]]
            confirmed += true[max(left, key=lambda t: statistics.fmean(told[t]))]
        assert (
            dropped / races <= 0.02
        )  # measured on 5,000 races each: 1.3 % at most, where true values lie half a spread of seeds apart
        if spread == 1.0:
            assert confirmed > plain  # what it is for: the winner is truly better


class TestRace:
    def test_the_first_finished_take_part_and_stopped_ones_do_not(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.90, 0.95, 0.92, 0.93], stopped=3)
        found = stands(tmp_path)
        assert [e.number for e in found.entrants] == [1, 3, 2]
        assert [e.search for e in found.entrants] == [0.95, 0.93, 0.92]
        first, second, _ = found.seeds
        assert found.wanted == tuple((n, seed) for seed in (first, second) for n in (1, 3, 2))
        assert (found.winner, summary(found)["winner"]) == (None, None)

    def test_one_finished_trial_has_nobody_to_race_with(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.90], stopped=4)
        found = stands(tmp_path)
        assert (found.entrants, found.wanted, found.winner, found.next, summary(found)) == ((), (), None, None, {})

    @pytest.mark.parametrize("k", [0, 1])
    def test_turned_off(self, k: int, tmp_path: Path) -> None:
        searched(tmp_path, [0.90, 0.95])
        e = resolve({"search": {"confirm": k}})
        assert race(tmp_path, e, ranking(tmp_path)).entrants == ()
        assert epochs_left(tmp_path, e) == 0

    def test_best_mean_wins_whatever_the_search_said(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.96, 0.95, 0.94])
        one, two, three = stands(tmp_path).seeds
        for number, scores in enumerate([(0.93, 0.94, 0.935), (0.94, 0.945, 0.95), (0.92, 0.93, 0.94)]):
            for seed, value in zip((one, two, three), scores, strict=True):
                ran(tmp_path, number, seed, value)
        found = stands(tmp_path)
        assert found.wanted == ()
        assert found.winner is not None
        assert found.next is not None
        assert (found.winner.number, found.next.number) == (1, 0)
        assert found.winner.mean == pytest.approx(0.945)  # 0.95, what it was chosen for, is not in it
        told = summary(found)
        assert told["difference"]["mean"] == pytest.approx(1.0)
        first, second = confirm.lines(told)
        assert first == "confirmed over 3 other seeds: trial 1 94.50 ± 0.50 %, next trial 0 93.50 ± 0.50 %"
        assert second == "  difference +1.00 points (-0.24 to +2.24, within noise)"

    def test_ties_go_to_the_earlier_rank(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.90, 0.92, 0.91])
        for seed in stands(tmp_path, confirm_seeds=2).seeds:
            for number in range(3):
                ran(tmp_path, number, seed, 0.9)
        found = stands(tmp_path, confirm_seeds=2)
        assert found.winner is not None
        assert found.winner.number == 1
        assert "+0.00 points (the same in every seed)" in confirm.lines(summary(found))[1]

    def test_a_clear_loser_leaves_and_the_others_go_on(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.950, 0.948, 0.946])
        one, two, three = stands(tmp_path).seeds
        for number, value in enumerate([0.949, 0.951, 0.930]):
            ran(tmp_path, number, one, value)
        assert stands(tmp_path).wanted[:2] == ((0, two), (1, two))  # noise 1.6 points: nobody is
        ran(tmp_path, 2, two, 0.930)  # whoever was ahead of the decision
        ran(tmp_path, 0, two, 0.950)
        assert [e.dropped for e in stands(tmp_path).entrants] == [False] * 3
        ran(tmp_path, 1, two, 0.952)
        assert [e.dropped for e in stands(tmp_path).entrants] == [False] * 3  # 21.3 points of a thousand, 22.6 allowed
        study = tmp_path / "other"
        searched(study, [0.950, 0.948, 0.946])
        for number, value in enumerate([0.949, 0.947, 0.920]):
            ran(study, number, one, value)
        ran(study, 2, two, 0.9)
        assert [e.dropped for e in stands(study).entrants] == [False] * 3  # a fall of its own: the noise is 2.6
        again = tmp_path / "again"
        searched(again, [0.950, 0.948, 0.930])
        for number, value in enumerate([0.949, 0.947, 0.931]):
            ran(again, number, one, value)
        ran(again, 2, two, 0.999)  # begun before the decision: it does not count
        found = stands(again)
        assert [e.dropped for e in found.entrants] == [False, False, True]
        assert found.entrants[2].accuracy == {one: 0.931}
        assert found.wanted == ((0, two), (1, two), (0, three), (1, three))
        assert found.next is not None
        assert found.next.number in (0, 1)

    def test_dropped_all_but_one_ends_it(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.95, 0.90, 0.85])
        for number, value in enumerate([0.95, 0.90, 0.85]):
            ran(tmp_path, number, stands(tmp_path).seeds[0], value)
        found = stands(tmp_path)
        assert found.wanted == ()
        assert found.winner is not None
        assert found.winner.number == 0
        assert "next trial 1 90.00 % (dropped after 1 seed)" in confirm.lines(summary(found))[0]

    def test_without_those_that_fail(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.95, 0.90, 0.85])
        one, two, _ = stands(tmp_path).seeds
        for number, value in enumerate([0.95, 0.90, 0.85]):
            ran(tmp_path, number, one, value)
        assert [e.dropped for e in stands(tmp_path).entrants] == [False, True, True]
        ran(tmp_path, 0, two, 0.5, FAILED, "diverged in epoch 2")  # one that was ahead of the decision
        found = stands(tmp_path)
        assert [(e.dropped, e.failed) for e in found.entrants] == [
            (False, "diverged in epoch 2"),
            (False, None),
            (True, None),
        ]
        assert found.winner is not None
        assert found.winner.number == 1
        assert "failed: diverged" in str(confirm.rows(summary(found)))

    def test_one_left_by_failures_runs_once_at_least(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.95, 0.94])
        one, two, _ = stands(tmp_path).seeds
        ran(tmp_path, 0, one, 0.5, FAILED, "diverged")
        assert stands(tmp_path).wanted == ((1, one), (1, two))
        ran(tmp_path, 1, one, 0.93)
        assert stands(tmp_path).wanted == ()
        assert "no other finished" in confirm.lines(summary(stands(tmp_path)))[0]

    def test_all_failed(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.95, 0.94])
        for number in range(2):
            ran(tmp_path, number, stands(tmp_path).seeds[0], 0.5, FAILED, "out of memory")
        found = stands(tmp_path)
        assert (found.wanted, found.winner) == ((), None)
        assert "order of the search stands" in confirm.lines(summary(found))[0]
        assert len(confirm.rows(summary(found))[1]) == 2

    def test_while_trials_run_only_who_is_sure_of_a_place(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.90, 0.95, 0.92, 0.93])
        one, two, _ = stands(tmp_path).seeds
        assert stands(tmp_path, unfinished=1).wanted == ((1, one), (3, one), (1, two), (3, two))
        assert stands(tmp_path, unfinished=2).wanted == ((1, one), (1, two))
        assert stands(tmp_path, unfinished=3).wanted == ()
        ran(tmp_path, 1, one, 0.95)
        ran(tmp_path, 3, one, 0.50)
        assert stands(tmp_path, unfinished=1).wanted == ((1, two), (3, two))  # nothing is decided yet

    def test_epochs_left(self, tmp_path: Path) -> None:
        e = experiment(trials=8, confirm=3, confirm_seeds=2)
        assert epochs_left(tmp_path, e) == 3 * 2 * 3
        searched(tmp_path, [0.90, 0.95, 0.92])
        ran(tmp_path, 1, seeds(e)[0], 0.9)
        assert epochs_left(tmp_path, e) == 15
        assert epochs_left(tmp_path, experiment(trials=2, confirm=3, confirm_seeds=2)) == 9

    def test_a_study_of_before_whose_final_runs_began_keeps_its_winner(self, tmp_path: Path) -> None:
        searched(tmp_path, [0.90, 0.95])
        (tmp_path / "finals" / "champion-seed1").mkdir(parents=True)
        assert stands(tmp_path).entrants == ()
        ran(tmp_path, 1, stands(tmp_path).seeds[0], 0.9)  # it was confirmed
        assert len(stands(tmp_path).entrants) == 2


class Lucky(Session):
    """Seeds matter, and one configuration fails on all but its first."""

    def luck(self, folder: Path) -> float:
        digest = hashlib.sha256(folder.name.encode()).digest()
        return 0.2 * random.Random(digest).gauss(0, 1)


class TestSearch:
    E = staticmethod(
        lambda **kw: experiment(**{"trials": 6, "confirm": 3, "confirm_seeds": 3, "sampler": "random"} | kw)
    )

    def test_after_the_trials_the_race(self, tmp_path: Path) -> None:
        session = Lucky(tmp_path, self.E())
        session.run()
        found = race(tmp_path, self.E(), ranking(tmp_path))
        assert session.order[2:8] == [f"trial {n}" for n in range(6)]
        confirmed = session.order[8:]
        first = [f"trial {e.number} seed {found.seeds[0]}" for e in found.entrants]
        assert confirmed[:3] == first
        assert found.wanted == ()
        assert found.winner is not None
        assert len(trials_of(tmp_path)) == 6  # Optuna is told nothing of it
        runs = [Run.read(p.parent) for p in (tmp_path / "confirm").glob("*/run.json")]
        assert {(r.kind, r.state, r.number) for r in runs if r} == {("confirm", COMPLETE, None)}
        for r in runs:
            assert r is not None
            trial = Run.read(tmp_path / "trials" / f"{int(r.tags['trial']):05d}")
            assert trial is not None
            assert r.parameters == trial.parameters

    def test_several_at_a_time_decide_the_same(self, tmp_path: Path) -> None:
        Lucky(tmp_path / "one", self.E()).run()
        Lucky(tmp_path / "three", self.E()).run(concurrent=3)
        one, three = (summary(race(tmp_path / n, self.E(), ranking(tmp_path / n))) for n in ("one", "three"))
        assert one == three

    def test_it_waits_only_while_something_runs(self, tmp_path: Path) -> None:
        session = Lucky(tmp_path, self.E(trials=4), controls=False)
        trials = [session.start() for _ in range(4)]
        assert session.searcher.suggest("early") is None
        for started in trials[:3]:
            assert started is not None
            list(session.epochs(*started))
        started = trials[3]
        finished = sum(r.state == COMPLETE for r, _, _ in ranking(tmp_path))
        sure = [session.searcher.suggest(f"sure{k}") for k in range(9)]
        assert [s is not None for s in sure] == [k < 2 * min(2, finished) * (finished > 1) for k in range(9)]
        assert started is not None
        list(session.epochs(*started))
        for k, config in enumerate(sure):
            if config is not None:
                list(session.epochs(f"sure{k}", config))
        session.run()
        assert session.searcher.suggest("late") == Searcher.FINISHED
        assert race(tmp_path, self.E(trials=4), ranking(tmp_path)).wanted == ()

    def test_nothing_waits_for_controls_but_the_end(self, tmp_path: Path) -> None:
        session = Lucky(tmp_path, self.E(trials=1))
        controls = [session.start() for _ in range(2)]
        (started,) = [session.start()]
        assert started is not None
        list(session.epochs(*started))
        assert session.searcher.suggest("x") is None  # nothing but controls is left, and may have to be begun again
        for control in controls:
            assert control is not None
            list(session.epochs(*control))
        assert session.searcher.suggest("y") == Searcher.FINISHED

    def test_no_time_for_trials_is_time_to_confirm(self, tmp_path: Path) -> None:
        now = [0.0]
        session = Lucky(tmp_path, self.E(trials=50, time_budget=60.0), lambda: now[0], controls=False)
        for _ in range(5):
            started = session.start()
            assert started is not None
            list(session.epochs(*started))
        now[0] = 61.0
        session.run()
        assert race(tmp_path, self.E(trials=50), ranking(tmp_path)).wanted == ()
        assert len(trials_of(tmp_path)) == 5
        assert len(list((tmp_path / "confirm").iterdir())) >= 3

    def test_killed_at_any_write_equals_undisturbed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        e = self.E(trials=5, seed=2)
        with monkeypatch.context() as patch:
            before = count_writes(patch, math.inf)
            Lucky(tmp_path / "trials", self.E(trials=5, seed=2, confirm=0, confirm_seeds=None)).run()
        with monkeypatch.context() as patch:
            count = count_writes(patch, math.inf)
            Lucky(tmp_path / "whole", e).run()
        wanted, kept = trials_of(tmp_path / "whole"), folders_of(tmp_path / "whole")
        assert count[0] > before[0] + 20
        for moment in range(before[0] - 3, count[0], 2):
            folder = tmp_path / f"cut{moment}"
            with monkeypatch.context() as patch:
                count_writes(patch, moment)
                with pytest.raises(Killed):
                    Lucky(folder, e).run()
            Lucky(folder, e).run()
            assert trials_of(folder) == wanted, f"killed at write {moment}"
            assert folders_of(folder) == kept, f"killed at write {moment}"

    def test_a_run_that_fails_is_recorded(self, tmp_path: Path) -> None:
        session = Lucky(tmp_path, self.E(), controls=False)
        broken: list[str] = []
        while (started := session.start()) is not None:
            trial_id, config = started
            if config["kind"] == "confirm" and not broken:
                broken.append(config["folder"])
                session.searcher.on_trial_complete(trial_id, {"failed": "diverged in epoch 1"})
            else:
                list(session.epochs(trial_id, config))
        run = Run.read(Path(broken[0]))
        assert run is not None
        assert (run.state, run.reason) == (FAILED, "diverged in epoch 1")
        found = race(tmp_path, self.E(), ranking(tmp_path))
        assert [e.failed for e in found.entrants] == ["diverged in epoch 1", None, None]
        assert found.winner is not None
        assert found.winner.number == found.entrants[1].number or found.winner.number == found.entrants[2].number

    def test_a_full_disk_fails_no_run(self, tmp_path: Path) -> None:
        session = Lucky(tmp_path, self.E(), controls=False)
        while (started := session.start()) is not None and started[1]["kind"] != "confirm":
            list(session.epochs(*started))
        assert started is not None
        session.searcher.on_trial_complete(started[0], {"failed": "[Errno 28] No space left on device"})
        assert session.searcher.full is not None
        assert session.start() is None
        run = Run.read(Path(started[1]["folder"]))
        assert run is not None
        assert run.state == RUNNING
        Lucky(tmp_path, self.E(), controls=False).run()
        assert race(tmp_path, self.E(), ranking(tmp_path)).winner is not None


class TestMistakes:
    @pytest.mark.parametrize(
        ("search", "said"),
        [
            ({"confirm": -1}, "search.confirm = -1: must be a whole number >= 0"),
            ({"confirm": 2, "confirm_seeds": 0}, "search.confirm_seeds = 0: must be a whole number >= 1"),
            ({"confirm": 1, "confirm_seeds": 4}, "search.confirm_seeds = 4: has no effect where search.confirm is 1"),
        ],
    )
    def test_are_told(self, search: Mapping[str, Any], said: str) -> None:
        with pytest.raises(ExperimentError) as mistake:
            resolve({"search": dict(search)})
        assert said in str(mistake.value)


class TestTold:
    @pytest.fixture
    def confirmed(self, tmp_path: Path) -> Path:
        """A finished study with a race in its folder and its result."""
        study = made_study.make(tmp_path / "s")
        result, e = StudyResult.read(study), resolve(made_study.KD)
        assert result is not None
        (study / "finals").rename(tmp_path / "finals")
        found = race(study, e, ranking(study))
        for number, seed in [(x.number, s) for x in found.entrants for s in found.seeds]:
            ran(study, number, seed, 0.9 + 0.01 * (number == result.best_trial["number"]) + 0.0001 * (seed % 7))
        (tmp_path / "finals").rename(study / "finals")
        StudyResult(**{**vars(result), "confirmation": summary(race(study, e, ranking(study)))}).write(study)
        return study

    def test_in_box_and_reports(self, confirmed: Path) -> None:
        result = StudyResult.read(confirmed)
        assert result is not None
        assert any(line.startswith("confirmed over") for line in closing_lines(result, "akd ui"))
        for form in ("html", "md", "json"):
            text = formats.write(confirmed, confirmed / f"r.{form}", form).read_text(encoding="utf-8")
            assert "onfirm" in text
        assert "Confirmation" in formats.markdown(facts.gather(confirmed))
        assert facts.gather(confirmed).best == result.best_trial["number"]

    def test_a_study_of_before_has_no_table(self, tmp_path: Path) -> None:
        study = made_study.make(tmp_path / "s")
        kept = json.loads((study / "result.json").read_text(encoding="utf-8"))
        del kept["confirmation"]
        (study / "result.json").write_text(json.dumps(kept), encoding="utf-8")
        assert "Confirmation" not in formats.markdown(facts.gather(study))

    def test_verify_sees_what_differs(self, confirmed: Path) -> None:
        def check() -> verify.Check:
            (found,) = [c for c in verify.verify(confirmed, f"sqlite:///{confirmed}/no.db") if c.name == "confirmation"]
            return found

        assert check().good
        first = sorted((confirmed / "confirm").iterdir())[0]
        text = (first / "history.jsonl").read_text(encoding="utf-8")
        (first / "history.jsonl").write_text(text.replace("0.9", "0.8"), encoding="utf-8")
        assert "result.json says" in check().problems[0]


@pytest.mark.long
@pytest.mark.ray
def test_a_search_through_tune_confirms_its_winner(tmp_path: Path) -> None:
    """Real Tune on two workers: no worker is started again, all records agree."""
    experiment = simulated.experiment(6, 4, concurrent=2, seed=1, confirm=3, confirm_seeds=3, scheduler="none")
    with simulated.instead_of_training():
        result = akd.search(experiment, name="s", output=tmp_path)
    study = tmp_path / "s"
    assert [c.line() for c in verify.verify(study, f"sqlite:///{tmp_path}/mlflow.db") if not c.good] == []
    told = result.confirmation
    assert told["winner"] == result.best_trial["number"]
    assert len(told["trials"]) == 3
    for trial in told["trials"]:
        folder = study / "trials" / f"{trial['number']:05d}"
        run = Run.read(folder)
        assert run is not None
        assert run.state == COMPLETE
        for seed, value in trial["accuracy"].items():
            assert value == simulated.accuracy(run.parameters, int(seed), 4, 4)
    means = {t["number"]: t["mean"] for t in told["trials"] if not t["dropped"]}
    assert max(means, key=lambda n: means[n]) == told["winner"]
