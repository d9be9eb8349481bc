"""A search with several objectives driven by hand, without Ray: what is told, ranked, kept, and how it goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from akd import folder as run_folder
from akd import front
from akd.config import Experiment, resolve
from akd.folder import COMPLETE, PRUNED, Run
from akd.searcher import StudySearcher, open_study, ranking
from akd.space import parse

#: Made up: the larger, the better a student can become.
COSTS = {
    "resnet8": {"parameters": 78e3, "flops": 1.5e6, "latency_1": 0.3},
    "resnet14": {"parameters": 175e3, "flops": 3.3e6, "latency_1": 0.6},
    "wrn_16_1": {"parameters": 175e3, "flops": 3.4e6, "latency_1": 0.7},
}
CAN = {"resnet8": 0.80, "resnet14": 0.90, "wrn_16_1": 0.88}
EPOCHS = 3


def experiment(**search: Any) -> Experiment:
    return resolve(
        {
            "train": {"epochs": EPOCHS, "batch_size": 8},
            "search": {"trials": 16, "grace": 1, "objectives": "accuracy,parameters", **search},
            "space": {
                "student.name": {"choices": list(COSTS)},
                "train.lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
            },
        }
    )


def accuracy(values: dict[str, Any], epoch: int) -> float:
    """Rises by epoch; best at a learning rate of 0.1; of a few different values, so that there are ties."""
    miss = abs(values["train.lr"] / 0.1 - 1) if values["train.lr"] < 0.1 else abs(values["train.lr"] - 0.1)
    return round((CAN[values["student.name"]] - 0.2 * min(miss, 1)) * (1 - 0.5**epoch), 2)


class Killed(BaseException):
    """Stands for SIGKILL."""


def drive(folder: Path, e: Experiment, steps: float = float("inf")) -> None:
    """A session of one trial at a time, killed after so many epochs; a bad learning rate is stopped at epoch 2."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").is_file():
        run_folder.create(folder, e, Run("study", folder.name))
    study = open_study(folder / "optuna.log", "s", e.search.objectives)
    searcher = StudySearcher(e, parse(e), study, folder, {}, costs=COSTS)
    done = 0
    for trial in (f"tune{i}" for i in range(1000)):
        config = searcher.suggest(trial)
        if config == Searcher.FINISHED:
            return
        path = Path(config["folder"])
        run, known = Run.read(path), run_folder.history(path)
        assert run is not None
        for epoch in range(len(known) + 1, EPOCHS + 1):
            if epoch == 3 and run.parameters["train.lr"] > 0.6:
                break
            if done >= steps:
                raise Killed
            done += 1
            entry = {"epoch": epoch, "at": 0.0, "val/accuracy": accuracy(run.parameters, epoch)}
            with open(path / "history.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            searcher.on_trial_result(trial, {"epoch": epoch, "val_accuracy": entry["val/accuracy"]})
        searcher.on_trial_complete(trial, {"epoch": epoch})


def told(folder: Path) -> list[Any]:
    trials = open_study(folder / "optuna.log", "s").trials
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in trials]


@pytest.mark.parametrize("objectives", ["accuracy,parameters", "accuracy,parameters,latency_1"])
def test_optuna_is_told_every_value(tmp_path: Path, objectives: str) -> None:
    names = objectives.split(",")
    drive(tmp_path / "s", experiment(objectives=objectives))
    study = open_study(tmp_path / "s" / "optuna.log", "s")
    assert study.metric_names == names
    assert [d.name for d in study.directions] == ["MAXIMIZE"] + ["MINIMIZE"] * (len(names) - 1)
    states = Counter(t.state.name for t in study.trials)
    assert states["COMPLETE"] >= 8
    assert states["PRUNED"] >= 1
    for trial in study.trials:
        run = Run.read(tmp_path / "s" / "trials" / f"{trial.number:05d}")
        assert run is not None
        own = COSTS[run.parameters["student.name"]]
        assert run.results == {f"cost/{k}{'_ms' * k.startswith('latency')}": v for k, v in own.items()}
        if trial.state.name == "COMPLETE":
            assert trial.values == [accuracy(run.parameters, EPOCHS), *[own[name] for name in names[1:]]]
        else:  # as with one objective: its curve is there
            assert sorted(trial.intermediate_values) == [1, 2]
    # What akd calls the front is what Optuna does, on the journal as it is.
    assert {m["number"] for m in front.members(tmp_path / "s")} == {t.number for t in study.best_trials}


def test_the_sampler_learns_from_stopped_trials_too(tmp_path: Path) -> None:
    """TPE beyond its first random suggestions, with stopped trials in the study: it goes on, and where it should."""
    drive(tmp_path / "s", experiment(trials=60))
    late = [t for t in open_study(tmp_path / "s" / "optuna.log", "s").trials if t.number >= 20]
    assert sum(t.params["train.lr"] > 0.6 for t in late) <= 3
    kinds = Counter(t.params["student.name"] for t in late)
    assert kinds["resnet8"] >= 8  # small and large ones are both wanted
    assert kinds["resnet14"] >= 8


def test_killed_anywhere_equals_undisturbed(tmp_path: Path) -> None:
    e = experiment(trials=14)  # beyond TPE's first, random suggestions
    drive(tmp_path / "whole", e)
    for steps in (0, 1, 5, 11, 17):
        with pytest.raises(Killed):
            drive(tmp_path / "cut", e, steps)
    drive(tmp_path / "cut", e)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert front.members(tmp_path / "cut") == front.members(tmp_path / "whole") != []


def test_the_winner_is_the_most_accurate_on_the_front(tmp_path: Path) -> None:
    drive(tmp_path / "s", experiment(trials=40))
    best, members = ranking(tmp_path / "s")[0], front.members(tmp_path / "s")
    assert best[0].number == members[0]["number"]
    assert best[1] == members[0]["values"]["accuracy"]
    assert [m["values"]["accuracy"] for m in members] == sorted(
        (m["values"]["accuracy"] for m in members), reverse=True
    )
    assert len({m["student"] for m in members}) == 2
    assert {m["student"]: m["values"]["parameters"] for m in members} == {"resnet14": 175e3, "resnet8": 78e3}


def put(folder: Path, number: int, student: str, value: float, epochs: int = EPOCHS, **results: float) -> None:
    path = folder / "trials" / f"{number:05d}"
    run = Run("trial", f"trial {number}", number, {"student.name": student}, results=results)
    run_folder.create(path, resolve({}), run)
    lines = [json.dumps({"epoch": k, "at": 0.0, "val/accuracy": value}) for k in range(1, epochs + 1)]
    (path / "history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.end(path, COMPLETE if epochs == EPOCHS else PRUNED)


class TestRanking:
    def test_of_equally_accurate_trials_the_cheaper_comes_first_where_cost_counts(self, tmp_path: Path) -> None:
        put(tmp_path, 0, "resnet14", 0.9, **{"cost/parameters": 175e3})
        put(tmp_path, 1, "resnet8", 0.9, **{"cost/parameters": 78e3})
        put(tmp_path, 2, "resnet8", 0.95, epochs=2, **{"cost/parameters": 78e3})
        run_folder.create(tmp_path, experiment(), Run("study", "s"))
        assert [r.number for r, _, _ in ranking(tmp_path)] == [1, 0, 2]
        assert [m["number"] for m in front.members(tmp_path)] == [1]  # a stopped one has no place on it
        run_folder.create(tmp_path, experiment(objectives="accuracy"), Run("study", "s"))
        assert [r.number for r, _, _ in ranking(tmp_path)] == [0, 1, 2]
        assert front.members(tmp_path) == []

    def test_what_breaks_a_constraint_is_never_the_winner(self, tmp_path: Path) -> None:
        """As a trial that was taken over from a search without the constraint would."""
        put(tmp_path, 0, "wrn_40_2", 0.99, **{"cost/parameters": 2e6})
        put(tmp_path, 1, "resnet8", 0.9, **{"cost/parameters": 78e3})
        put(tmp_path, 2, "resnet8", 0.95)  # not known to obey
        run_folder.create(tmp_path, experiment(constraints={"parameters": "1 M"}), Run("study", "s"))
        assert [r.number for r, _, _ in ranking(tmp_path)] == [1]
        assert [m["number"] for m in front.members(tmp_path)] == [1]
        run_folder.create(tmp_path, experiment(), Run("study", "s"))
        assert [r.number for r, _, _ in ranking(tmp_path)] == [0, 2, 1]

    def test_without_a_word_of_what_is_asked_for(self, tmp_path: Path) -> None:
        put(tmp_path, 0, "resnet8", 0.9)
        assert [r.number for r, _, _ in ranking(tmp_path)] == [0]


def test_a_journal_has_the_names_of_several_objectives_once(tmp_path: Path) -> None:
    drive(tmp_path / "one", experiment(objectives="accuracy", trials=3))
    drive(tmp_path / "two", experiment(trials=3))
    for name, wanted in (("one", None), ("two", ["accuracy", "parameters"])):
        journal = tmp_path / name / "optuna.log"
        study = open_study(journal, "s", experiment(objectives=wanted or "accuracy").search.objectives)
        assert study.metric_names == wanted
        assert all(len(t.values) == len(wanted or [0]) for t in study.trials if t.values)
        assert journal.read_text(encoding="utf-8").count("metric_names") == (1 if wanted else 0)


def test_optunas_plot_of_the_journal(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    drive(tmp_path / "s", experiment())
    figure = optuna.visualization.plot_pareto_front(open_study(tmp_path / "s" / "optuna.log", "s"))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("accuracy", "parameters")
    (best,) = [part for part in figure.data if part.hovertemplate == "%{text}<extra>Best Trial</extra>"]
    drawn = set(zip(best.x, best.y, strict=True))
    assert drawn == {tuple(m["values"].values()) for m in front.members(tmp_path / "s")}


def test_lines_of_the_closing_box() -> None:
    members = [
        {
            "number": 12,
            "student": "resnet14",
            "values": {"accuracy": 0.9875, "parameters": 174970.0, "latency_1": 0.61},
        },
        {"number": 3, "student": "resnet8", "values": {"accuracy": 0.9, "parameters": 77754.0, "latency_1": 0.3}},
    ]
    assert front.lines(members, 12) == [
        "  trial 12  98.75 %   175 k parameters  0.61 ms for one image  (resnet14, the winner)",
        "  trial 3   90.00 %  77.8 k parameters   0.3 ms for one image  (resnet8)",
    ]
    assert front.lines([], 12) == []


def test_obeys() -> None:
    search = experiment(constraints={"parameters": 100, "latency_1": 2}).search
    assert front.obeys(search, {"cost/parameters": 100, "cost/latency_1_ms": 2})
    assert not front.obeys(search, {"cost/parameters": 101, "cost/latency_1_ms": 2})
    assert not front.obeys(search, {"cost/parameters": 100})
    assert front.obeys(replace(search, constraints=None), {})
