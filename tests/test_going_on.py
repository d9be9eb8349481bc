"""A whole study without Ray: trained here, killed, given more trials, replayed; all books agree each time.

What Ray does is replaced by a loop; searcher, trainer, final runs, MLflow and report are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher
from test_searcher import Killed

import akd.tuning
from akd import costs, running
from akd.folder import COMPLETE, PRUNED, Run
from akd.job import Job, run_here, run_job
from akd.logged import default_uri
from akd.places import Resources, Team
from akd.replay import replay
from akd.report.verify import verify
from akd.searcher import StudySearcher
from akd.study import resume, search

TREE: dict[str, Any] = {
    "data": {"name": "digits", "subset": 300},
    "teacher": {"name": "wrn_16_1", "train": {"epochs": 1, "threads": 1}},
    "student": "resnet8",
    "train": {"epochs": 2, "threads": 1},
    "search": {"trials": 2, "champion_seeds": 1, "confirm": 0, "seed": 3},
    "space": {
        "train.lr": {"type": "float", "low": 0.001, "high": 0.2, "log": True},
        "method.host.weight": {"type": "float", "low": 0.5, "high": 8.0, "log": True},
    },
}


class Here:
    """This process in the place of a Ray session."""

    token = ""

    def __init__(self, search: Any, address: str | None, mirror: Any):
        self.mirror = mirror

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measured(self, *_: Any) -> Resources:
        return Resources(1, 0, 1, 1)

    def clocked(self, *arguments: Any) -> costs.Table:
        return costs.clocked(*arguments)

    def team(self, batch_size: int) -> Team:
        return Team(1, 1, 0)

    def carry(self, jobs: list[Job], team: Team, **callbacks: Any) -> None:
        run_here(jobs, **self.mirror.around(**callbacks))


def run(
    experiment: Any, searcher: StudySearcher, resources: Any, job: Job, *, on_epoch: Callable[..., None], **_: Any
) -> tuple[bool, list[float]]:
    """One run after the other; every third trial is stopped after its first epoch."""
    number = 0
    while (config := searcher.suggest(f"t{number}")) != Searcher.FINISHED:
        folder, tune_id = Path(config["folder"]), f"t{number}"
        stopped = config["kind"] == "trial" and int(folder.name) % 3 == 2

        def told(record: Any, folder: Path = folder, tune_id: str = tune_id) -> None:
            value = record.metrics["val/accuracy"]
            searcher.on_trial_result(tune_id, {"epoch": record.epoch, "val_accuracy": value})
            on_epoch(folder, record.epoch, value)

        run_job(replace(job, folder=str(folder)), on_epoch=told, stop=lambda stopped=stopped: stopped)
        searcher.on_trial_complete(tune_id, {})
        number += 1
    return False, []


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(running, "Session", Here)
    monkeypatch.setattr(akd.tuning, "run", run)
    return tmp_path / "runs"


@contextmanager
def killed_in(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """The process dies in the first epoch of the run in folder ``name``."""
    real = akd.folder.train

    def dying(folder: Path, *args: Any, **kw: Any) -> Any:
        if folder.name == name:
            kw["on_epoch"] = lambda record: (_ for _ in ()).throw(Killed())
        return real(folder, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr("akd.folder.train", dying)
        try:
            yield
        except Killed:
            return
    pytest.fail("it did not die")


def agree(study: Path) -> None:
    wrong = [c.line() for c in verify(study, default_uri(study.parent)) if not c.good]
    assert not wrong


def test_more_trials_again_and_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(TREE, name="s", output=output)
    study = output / "s"
    agree(study)
    finals = {p.name: (p / "run.json").read_bytes() for p in (study / "finals").iterdir()}

    with killed_in(monkeypatch, "00003"):  # in the second of the added trials
        resume("s", output=output, add_trials=3)
    second = resume("s", output=output)
    agree(study)
    assert sum(second.trials.values()) == 5
    assert second.earlier == [
        {"trials": 2, "best_trial": first.best_trial["number"], "test": first.champion["test"]["mean"]}
    ]
    assert second.controls == first.controls
    for name in ("none-seed4", "kd-seed4"):  # the same configurations and seeds: not trained again
        assert (study / "finals" / name / "run.json").read_bytes() == finals[name]
    changed = second.best_trial["number"] != first.best_trial["number"]
    assert changed, "of these seeds a later trial wins"
    assert (study / "finals-1" / "champion-seed4" / "student").is_dir()
    assert second.champion["test"] != first.champion["test"]

    third = resume("s", output=output, add_trials=1)
    agree(study)
    assert sum(third.trials.values()) == 6
    assert [e["trials"] for e in third.earlier] == [2, 5]
    again = resume("s", output=output)  # finished: nothing is trained again
    assert again.best_trial == third.best_trial
    agree(study)

    states = {int(p.parent.name): r.state for p in (study / "trials").glob("*/run.json") if (r := Run.read(p.parent))}
    assert states == {0: COMPLETE, 1: COMPLETE, 2: PRUNED, 3: COMPLETE, 4: COMPLETE, 5: PRUNED}
    for name in ("0", "2", "3", "control:kd", "champion:4"):  # trial 3 was killed and resumed
        found = replay(study, name)
        assert found.matches, found.sentence()
        assert found.weights_equal
    agree(study)


def test_killed_in_the_new_champions_run(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(TREE, name="s", output=output)
    with killed_in(monkeypatch, "champion-seed4"):
        resume("s", output=output, add_trials=3)
    study = output / "s"
    assert (study / "finals-1" / "champion-seed4" / "run.json").is_file()
    result = resume("s", output=output)
    agree(study)
    run = Run.read(study / "finals" / "champion-seed4")
    assert run is not None
    assert result.champion["test"]["accuracy"] == {"4": run.results["test/accuracy"]}
    # Another study starts from it.
    new = search({**TREE, "student": "wrn_16_1"}, name="next", output=output, warm_start="s:1")
    assert new.warm_start == {"s": 1}
    agree(output / "next")
    tried = Run.read(output / "next" / "trials" / "00000")
    assert tried is not None
    assert tried.parameters == pytest.approx(result.best_trial["parameters"])
    assert tried.tags == {"warm_start": f"s trial {result.best_trial['number']}"}
    assert len(json.loads((output / "next" / "warm_start.json").read_text())["first"]) == 1
