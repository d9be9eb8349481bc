"""Optuna's own tools on a study's journal: its plots, and its dashboard over HTTP."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import optuna_dashboard
import pytest
from optuna import visualization
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_searcher import CONDITIONAL, Session, experiment

from akd.folder import Run
from akd.journal import read_trials
from akd.warm import First

FIRST = (First("old trial 3", {"train.lr": 0.1, "method.host.name": "kd", "method.host.weight": 1.5}),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with finished, stopped and failed trials and one that runs, and with conditional parameters."""
    folder = tmp_path_factory.mktemp("runs") / "s"
    Session(folder, experiment(CONDITIONAL, trials=24, seed=1, sampler="random"), first=FIRST).run()
    running = Session(folder, experiment(CONDITIONAL, trials=25, seed=1, sampler="random"))
    begun = running.start()
    assert begun is not None
    next(running.epochs(*begun))
    return folder


@pytest.fixture
def study(folder: Path) -> optuna.Study:
    """As the README says."""
    return optuna.load_study(
        study_name=folder.name, storage=JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    )


def test_the_study_has_all_kinds_of_trials(study: optuna.Study) -> None:
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}


@pytest.mark.parametrize(
    ("name", "traces"),
    [
        ("optimization_history", 2),
        ("intermediate_values", 10),
        ("param_importances", 1),
        ("slice", 5),
        ("contour", 5),
        ("parallel_coordinate", 1),
        ("edf", 1),
        ("timeline", 4),
        ("rank", 5),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_plots(name: str, traces: int, study: optuna.Study) -> None:
    figure = getattr(visualization, f"plot_{name}")(study)
    assert len(figure.data) >= traces
    # What it drew: every point of a plot is a number.
    text = json.loads(figure.to_json())
    assert text["data"]


@pytest.mark.filterwarnings("ignore")
def test_plots_show_what_was_measured(study: optuna.Study) -> None:
    best = max(t.values[0] for t in study.trials if t.values)
    (line,) = [d for d in visualization.plot_optimization_history(study).data if d.mode == "lines"]
    assert max(line.y) == best
    curves = visualization.plot_intermediate_values(study).data
    wanted = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED", "RUNNING") and t.intermediate_values]
    assert [list(c.y) for c in curves] == [list(t.intermediate_values.values()) for t in wanted]
    params = {d.name for d in visualization.plot_timeline(study).data}
    assert params == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}


def test_attributes_say_what_values_do_not(folder: Path, study: optuna.Study) -> None:
    for trial in study.trials:
        run = Run.read(folder / trial.user_attrs["folder"])
        assert run is not None
        assert run.number == trial.number
        if "train.decay_epochs" in trial.params:  # Optuna holds the position of a list
            assert json.loads(trial.user_attrs["train.decay_epochs"]) == run.parameters["train.decay_epochs"]
        else:
            assert "train.decay_epochs" not in trial.user_attrs
        assert trial.user_attrs.get("reason") == run.reason
    assert any("reason" in t.user_attrs for t in study.trials)
    assert any("train.decay_epochs" in t.user_attrs for t in study.trials)
    assert study.trials[0].user_attrs["warm_start"] == "old trial 3"


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """The dashboard on a free port of loopback."""
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    server = make_server("127.0.0.1", 0, optuna_dashboard.wsgi(storage), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.loads(answer.read())


def test_the_dashboard_shows_the_study_while_it_is_searched(folder: Path, address: str) -> None:
    (listed,) = get(f"{address}/api/studies")["study_summaries"]
    assert listed["study_name"] == "s"
    assert listed["directions"] == ["maximize"]
    number = listed["study_id"]
    told = get(f"{address}/api/studies/{number}")
    trials = told["trials"]
    assert len(trials) == 25
    assert {t["state"] for t in trials} == {"Complete", "Pruned", "Fail", "Running"}
    kept = read_trials(folder / "optuna.log", "s")  # and akd's own reader beside it
    for shown, trial in zip(trials, kept, strict=True):
        assert shown["number"] == trial.number
        assert {p["name"] for p in shown["params"]} == set(trial.params)
        assert {a["key"]: a["value"] for a in shown["user_attrs"]} == trial.user_attrs
        assert [(v["step"], v["value"]) for v in shown["intermediate_values"]] == list(
            trial.intermediate_values.items()
        )
    with urllib.request.urlopen(f"{address}/dashboard/studies/{number}", timeout=30) as page:
        assert b"<html" in page.read().lower()
