"""Searches in simulated time: what they name and cost, when they count as there; the command on a tiny budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import search_quality
import simulated
from digits_objective import Digits
from search_quality import Named, Simulation, drawn_arm, median_interval, random_arm, reach, searched

from akd import folder as run_folder
from akd.folder import COMPLETE, FAILED, PRUNED, Run
from akd.searcher import ranking

EPOCHS = 9


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_a_search_as_it_would_be(scheduler: str, tmp_path: Path) -> None:
    objective = Simulation(EPOCHS)
    experiment = objective.experiment(14, 3, scheduler=scheduler)
    named = list(searched(objective, experiment, tmp_path, concurrent=3))
    runs = [Run.read(p.parent) for p in sorted(tmp_path.glob("trials/*/run.json"))]
    assert len(runs) == 14
    assert sum(run.state == PRUNED for run in runs) > 4 if scheduler == "asha" else True
    assert named[-1].ended == 14
    assert named[-1].values == ranking(tmp_path)[0][0].parameters  # what akd itself would name
    costs = [
        simulated.cost(run.parameters, 2 if run.state == FAILED else len(run_folder.history(path)))
        for run, path in zip(runs, sorted((tmp_path / "trials").iterdir()), strict=True)
    ]
    assert named[-1].spent == pytest.approx(sum(costs))
    assert [n.spent for n in named] == sorted(n.spent for n in named)
    if scheduler == "none":
        assert {run.state for run in runs if not simulated.diverges(run.parameters)} == {COMPLETE}


def test_a_search_is_a_function_of_its_seed(tmp_path: Path) -> None:
    objective = Simulation(EPOCHS)

    def once(name: str, seed: int) -> list[Named]:
        return list(searched(objective, objective.experiment(8, seed), tmp_path / name, 2))

    assert once("a", 1) == once("b", 1)
    assert once("c", 2) != once("d", 1)


class Told:
    """True values by name; counts how often it is asked."""

    asked = 0

    def truth(self, values: Mapping[str, Any]) -> float:
        self.asked += 1
        return float(values["worth"])


MOMENTS = [Named(10.0, 2, {"worth": 1}), Named(20.0, 5, {"worth": 3}), Named(30.0, 7, {"worth": 2})]


class TestReach:
    def test_is_the_first_moment_that_is_good_enough(self) -> None:
        told = Told()
        found = reach(told, iter(MOMENTS), 2.5, 100, whole=False)  # type: ignore[arg-type]
        assert (found.spent, found.ended, found.last, told.asked) == (20.0, 5, 3.0, 2)
        whole = reach(told, iter(MOMENTS), 2.5, 100, whole=True)  # type: ignore[arg-type]
        assert (whole.spent, whole.last) == (20.0, 2.0)  # and it may name a worse one later

    def test_what_comes_too_late_does_not_count(self) -> None:
        found = reach(Told(), iter(MOMENTS), 2.5, 19, whole=False)  # type: ignore[arg-type]
        assert (found.spent, found.last) == (None, 1.0)

    def test_one_name_is_asked_for_once(self) -> None:
        told, same = Told(), [Named(float(k), k, {"worth": 1}) for k in range(9)]
        assert reach(told, iter(same), 2, 100, whole=False).spent is None  # type: ignore[arg-type]
        assert told.asked == 1


def test_random_arms() -> None:
    objective = Simulation(3)
    one, other = random_arm(objective, 5, 4), random_arm(objective, 6, 4)
    assert one.ended == search_quality.FULL
    assert one.values != other.values
    pool = [({"worth": k}, [0.0, k / 100]) for k in range(96)]
    drawn = [drawn_arm(pool, seed) for seed in range(20)]
    assert {d.spent for d in drawn} == {128.0}
    best = [d.values["worth"] for d in drawn]
    assert max(best) == 95  # two of three times
    assert len(set(best)) > 1


def test_median_interval() -> None:
    middle, low, high = median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert middle == 3.0
    assert low >= 1.0
    assert high <= 100.0
    assert low < middle < high


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--simulation", "--epochs", "3"]
    search_quality.main([*tiny, "--seeds", "2", "--trials", "12"])
    first, *seeds, last = capsys.readouterr().out.splitlines()
    assert first.startswith("random: 64 full runs, ")
    assert len(seeds) == 2
    assert "times less (95 % interval" in last
    search_quality.main(
        [
            "--simulation",
            "--seeds",
            "1",
            "--epochs",
            "3",
            "--trials",
            "2",
            "--set",
            "scheduler=none",
            "--set",
            "sampler=random",
        ]
    )
    assert "1 of 1 seeds not reached, counted as 1" in capsys.readouterr().out.splitlines()[-1]


def test_digits_keep_what_they_trained(tmp_path: Path) -> None:
    small = {"teacher.train.epochs": 1}
    values = {
        "train.lr": 0.1,
        "train.weight_decay": 1e-4,
        "method.host.temperature": 4.0,
        "method.host.weight": 1.0,
        "method.host.ce_weight": 0.5,
    }
    parts, whole = Digits(tmp_path / "a", 3, small), Digits(tmp_path / "b", 3, small)
    last = whole.accuracy(values, 0, 3)  # at once
    assert parts.accuracy(values, 0, 1) == whole.accuracy(values, 0, 1)
    (folder,) = (tmp_path / "a" / "runs").iterdir()
    assert len(run_folder.history(folder)) == 1  # up to the rung, and no further
    assert parts.accuracy(values, 0, 2) == whole.accuracy(values, 0, 2)
    assert parts.accuracy(values, 0, 3) == last
    assert len(list((tmp_path / "b" / "runs").iterdir())) == 1
    diverging = values | {"train.lr": 1e30}
    assert whole.accuracy(diverging, 0, 1) is None
    assert whole.accuracy(diverging, 0, 1) is None
    truth = whole._held_out(values, 1001)
    assert 0 < truth < 100
    assert not math.isclose(truth, 100 * (last or 0))  # other images, another seed
    (kept,) = (tmp_path / "b" / "truths").iterdir()
    before = kept.stat().st_mtime_ns
    assert whole._held_out(values, 1001) == truth
    assert kept.stat().st_mtime_ns == before
    assert whole._held_out(diverging, 1001) == 0.0
