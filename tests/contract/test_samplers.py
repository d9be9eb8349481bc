"""Every sampler with every scheduler goes through the same tests: a whole search of the simulated objective, no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulated
from driven import Driven
from optuna.storages.journal import JournalFileBackend

from akd import checkpoint, grid
from akd import folder as run_folder
from akd.config import Experiment
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.searcher import open_study
from akd.space import Space, parse

SAMPLERS = ["tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid"]
SCHEDULERS = ["asha", "median", "none"]
EPOCHS = 4  # rungs 1 and 3
FIXED = simulated.OPTIMUM | {"method.host.name": "kd", "method.views.head": "full"}
NUMBERS = ["method.host.weight", "method.host.temperature", "method.views.count", "method.views.margin", "train.lr"]
#: Of each sampler: what it can search.
SPACES: dict[str, dict[str, Any]] = {
    "cmaes": {k: simulated.SPACE[k] if k in NUMBERS else v for k, v in FIXED.items() if "rank" not in k},
    "gp": {k: v for k, v in simulated.SPACE.items() if "head" not in k} | {"method.views.head": "full"},
    "grid": {
        **{k: v for k, v in FIXED.items() if "rank" not in k},
        "method.host.weight": {"choices": [0.9, 2.0, 5.0]},
        "method.views.margin": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1},
        "method.views.head": {"choices": ["full", "low_rank"]},
        "method.views.head_rank": {"choices": [8, 16], "when": {"method.views.head": "low_rank"}},
    },
}
SPACES["nsga2"] = SPACES["gp"]
PARSED: dict[str, Space] = {}


#: Enough for each to learn something: the Gaussian process takes a while, the genetic one has generations of eight.
TRIALS = {"gp": 9, "nsga2": 20}


def search(sampler: str, scheduler: str, trials: int | None = None, **more: Any) -> tuple[Experiment, Space]:
    space, trials = SPACES.get(sampler, simulated.SPACE), trials or TRIALS.get(sampler, 13)
    e = simulated.experiment(trials, EPOCHS, sampler=sampler, scheduler=scheduler, **more)
    e = e.__class__(**{**e.__dict__, "space": space})
    if sampler not in PARSED:
        PARSED[sampler] = parse(e)
    return e, PARSED[sampler]


def told(folder: Path) -> list[tuple[Any, ...]]:
    """What the journal says when it is opened again."""
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in journal(folder)]


def journal(folder: Path) -> list[Any]:
    return open_study(folder / "optuna.log", "s").trials


def kept(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What the folders say."""
    found = {}
    for path in sorted(folder.glob("*/*/run.json")):
        run = Run.read(path.parent)
        assert run is not None
        entries = [(e["epoch"], e["val/accuracy"]) for e in run_folder.history(path.parent)]
        found[run.name] = (run.kind, run.number, run.parameters, run.state, run.reason, run.rung, entries)
    return found


class Killed(BaseException):
    """Stands for SIGKILL: nothing between it and the test handles it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, allowed: float) -> Callable[[], int]:
    """Kill the process at its first write after ``allowed`` of them; gives how many there were."""
    count = [0]

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kw: Any) -> Any:
            if count[0] >= allowed:
                raise Killed
            count[0] += 1
            return real(*args, **kw)

        monkeypatch.setattr(owner, name, counted)

    before(JournalFileBackend, "append_logs")
    before(checkpoint, "write_text")
    before(simulated, "write_epochs")
    return lambda: count[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, int]]:
    """An undisturbed search of a sampler and a scheduler, one trial at a time, and the writes it took."""
    made: dict[tuple[str, str], tuple[Path, int]] = {}

    def of(sampler: str, scheduler: str) -> tuple[Path, int]:
        if (sampler, scheduler) not in made:
            folder = tmp_path_factory.mktemp(f"{sampler}-{scheduler}")
            with pytest.MonkeyPatch.context() as patch:
                writes = killed_at(patch, float("inf"))
                Driven(folder, *search(sampler, scheduler)).run()
                made[sampler, scheduler] = folder, writes()
        return made[sampler, scheduler]

    return of


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestEverySamplerWithEveryScheduler:
    def test_all_trials_are_run_and_told_as_they_ended(self, sampler: str, scheduler: str, whole: Any) -> None:
        folder, _ = whole(sampler, scheduler)
        runs = {r[1]: r for r in kept(folder).values() if r[0] == "trial"}
        trials = told(folder)
        assert [t[0] for t in trials] == sorted(runs) == list(range(TRIALS.get(sampler, 13)))
        for number, state, _, values, intermediate in trials:
            _, _, parameters, state_kept, reason, rung, entries = runs[number]
            assert {"FAIL": FAILED}.get(state, state) == state_kept
            assert dict(entries) == intermediate
            wanted = [simulated.accuracy(parameters, 0, e, EPOCHS) for e in range(1, len(entries) + 1)]
            assert [a for _, a in entries] == wanted
            if state == "COMPLETE":
                assert (values, rung, len(entries)) == ([wanted[-1]], 3, EPOCHS)
            elif state == "PRUNED":
                assert (values, reason) == (wanted[-1:], None)  # Optuna's: the last of the intermediate values
                assert rung in (1, 3)
                assert len(entries) >= rung  # ASHA judges once more when others have come there
                assert scheduler == "asha" or len(entries) == rung
            else:
                assert "diverged" in reason
        states = {t[1] for t in trials}
        assert "COMPLETE" in states
        assert ("PRUNED" in states) == (scheduler != "none")

    def test_controls_are_untouched(self, sampler: str, scheduler: str, whole: Any) -> None:
        folder, _ = whole(sampler, scheduler)
        controls = {name: run for name, run in kept(folder).items() if run[0] == "control"}
        assert list(controls) == ["control kd", "control none"]
        for run in controls.values():
            assert (run[3], run[4], len(run[6])) == (COMPLETE, None, EPOCHS)
        assert not any("val" in str(t.user_attrs) for t in journal(folder))

    def test_values_lie_in_the_space_and_differ(self, sampler: str, scheduler: str, whole: Any) -> None:
        folder, _ = whole(sampler, scheduler)
        _, space = search(sampler, scheduler)
        by_key = {p.key: p for p in space.parameters}
        seen = set()
        for run in kept(folder).values():
            if run[0] == "trial":
                assert all(by_key[k].takes(v) and by_key[k].exists(run[2]) for k, v in run[2].items())
                assert all(k in run[2] for k, p in by_key.items() if p.exists(run[2]))
                seen.add(str(run[2]))
        assert len(seen) >= len(told(folder)) - 1  # NSGA-II may hand a parent on unchanged

    def test_killed_in_the_middle_and_resumed_equals_undisturbed(
        self, sampler: str, scheduler: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, writes = whole(sampler, scheduler)
        place = SAMPLERS.index(sampler) + 7 * SCHEDULERS.index(scheduler)
        # Two kills, at other moments for each pair; at the first something was learned already.
        for allowed in (writes * 3 // 4 - place, 5 + place % 4):
            with monkeypatch.context() as patch:
                killed_at(patch, allowed)
                with pytest.raises(Killed):
                    Driven(tmp_path, *search(sampler, scheduler)).run()
        Driven(tmp_path, *search(sampler, scheduler)).run()
        assert told(tmp_path) == told(folder)
        assert kept(tmp_path) == kept(folder)

    def test_a_lost_journal_is_made_again(self, sampler: str, scheduler: str, whole: Any, tmp_path: Path) -> None:
        """Nothing of a sampler lives in the journal alone: another machine goes on from the folders."""
        folder, _ = whole(sampler, scheduler)
        started = itertools.count(1)

        def until(path: Path) -> None:
            if next(started) == TRIALS.get(sampler, 13):  # the last but one, after two controls
                raise Killed

        with pytest.raises(Killed):
            Driven(tmp_path, *search(sampler, scheduler), on_start=until).run()
        (tmp_path / "optuna.log").unlink()
        Driven(tmp_path, *search(sampler, scheduler)).run()
        assert told(tmp_path) == told(folder)

    def test_three_at_a_time_loses_and_doubles_nothing(
        self, sampler: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for allowed in itertools.count(40, 25):
            with monkeypatch.context() as patch:
                killed_at(patch, allowed)
                try:
                    Driven(tmp_path, *search(sampler, scheduler, trials=8)).run(concurrent=3)
                except Killed:
                    continue
            break
        trials, runs = told(tmp_path), [r for r in kept(tmp_path).values() if r[0] == "trial"]
        assert [t[0] for t in trials] == [r[1] for r in runs] == list(range(len(runs)))
        assert len(runs) == 8
        assert {r[3] for r in runs} <= {COMPLETE, PRUNED, FAILED}
        assert all([e for e, _ in r[6]] == list(range(1, len(r[6]) + 1)) for r in runs)
        if sampler == "grid":
            assert len({str(r[2]) for r in runs}) == 8


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_grid_ends_the_search_when_every_cell_was_tried(scheduler: str, tmp_path: Path) -> None:
    e, space = search("grid", scheduler, trials=200)
    session = Driven(tmp_path, e, space)
    session.run(concurrent=2)
    tried = [r[2] for r in kept(tmp_path).values() if r[0] == "trial"]
    assert len(tried) == grid.count(space) == 3 * 3 * 3
    assert {str(space.told(v)) for v in tried} == {str(c) for c in grid.cells(space)}
    assert not any(r[3] == RUNNING for r in kept(tmp_path).values())
