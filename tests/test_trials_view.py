"""A study of several trials in a real store: what a user sorts and filters by, and the view of it that akd leaves."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import made_study
import pytest
from mlflow import MlflowClient

from akd import folder as run_folder
from akd.config import resolve
from akd.data import load, split
from akd.folder import COMPLETE, PRUNED, Run
from akd.logged import default_uri
from akd.provenance import data_of, note_data
from akd.tracking import Tracker
from akd.trials_view import trials_filter, trials_view
from akd.ui import study_address, trials_address

TRIALS = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a teacher, and everything in MLflow; and another study of two trials in the same experiment."""
    output = tmp_path_factory.mktemp("runs")
    for name, trials in (("s", TRIALS), ("other", 2)):
        folder = made_study.make(output / name, made_study.VIEWS, trials)
        experiment = resolve(made_study.VIEWS)
        note_data(folder, experiment.data, split(experiment.data, load(experiment.data)))
        tracker = Tracker(default_uri(output), output, folder, "view", keep="none", on_trouble=print)
        for path in sorted(folder.glob("*/*/run.json")):
            tracker.changed(path.parent)
        assert tracker.close()
    return output / "s"


@pytest.fixture(scope="module")
def client(study: Path) -> MlflowClient:
    return MlflowClient(default_uri(study.parent))


def runs(client: MlflowClient, filter_: str, *order: str) -> list[int | None]:
    """Numbers of the trials that a filter finds."""
    found = client.get_experiment_by_name("view")
    assert found is not None
    logged = client.search_runs([found.experiment_id], filter_, max_results=1000, order_by=list(order))
    return [int(r.data.tags["akd.trial"]) if "akd.trial" in r.data.tags else None for r in logged]


def facts(study: Path) -> dict[int, tuple[str, float, int]]:
    """Of each trial's folder: state, last validation accuracy, epochs."""
    found = {}
    for path in study.glob("trials/*/run.json"):
        run, entries = Run.read(path.parent), run_folder.history(path.parent)
        assert run is not None
        assert run.number is not None
        found[run.number] = (run.state, entries[-1]["val/accuracy"], len(entries))
    return found


def test_filters_that_the_readme_names(study: Path, client: MlflowClient) -> None:
    know = facts(study)
    mine = f"tags.akd.study = '{study.name}'"

    def wanted(test: object) -> set[int]:
        return {n for n, fact in know.items() if test(*fact)}  # type: ignore[operator]

    assert set(runs(client, f"tags.akd.kind = 'trial' and {mine}")) == set(know)
    assert len(runs(client, "tags.akd.kind = 'trial'")) == TRIALS + 2
    high = wanted(lambda state, accuracy, epochs: accuracy > 0.9)
    assert 0 < len(high) < TRIALS
    assert set(runs(client, f"tags.akd.kind = 'trial' and metrics.`val/accuracy` > 0.9 and {mine}")) == high
    stopped = wanted(lambda state, accuracy, epochs: state == PRUNED)
    assert set(runs(client, f"tags.akd.status = 'PRUNED' and {mine}")) == stopped
    assert set(runs(client, f"metrics.epochs < 9 and tags.akd.kind = 'trial' and {mine}")) == wanted(
        lambda state, accuracy, epochs: epochs < 9
    )
    assert set(runs(client, f"metrics.trial >= 9 and {mine}")) == {9, 10, 11}
    assert set(runs(client, f"metrics.epochs >= 9 and tags.akd.kind = 'trial' and {mine}")) == wanted(
        lambda state, *_: state == COMPLETE
    )
    assert len(runs(client, f"tags.akd.kind = 'final' and metrics.`test/accuracy` > 0.5 and {mine}")) == 9
    hash_ = (data_of(study) or {})["hash"]
    assert len(runs(client, f"dataset.digest = '{hash_}-train' and {mine}")) == 1 + 2 + TRIALS


def test_numbers_sort_as_numbers(study: Path, client: MlflowClient) -> None:
    know, only = facts(study), trials_filter(study.name)
    assert runs(client, only, "metrics.trial ASC") == list(range(TRIALS))
    best = sorted(know, key=lambda n: -know[n][1])
    assert runs(client, only, "metrics.`val/accuracy` DESC") == best


def test_few_metrics_and_short_names_first(study: Path, client: MlflowClient) -> None:
    found = client.get_experiment_by_name("view")
    assert found is not None
    for run in client.search_runs([found.experiment_id], trials_filter(study.name)):
        assert len(run.data.metrics) < 30
        own = Run.read(study / "trials" / f"{int(run.data.tags['akd.trial']):05d}")
        assert own is not None
        assert sorted(run.data.params)[:3] == ["_count", "_lr", "_margin"]
        assert run.data.params["_lr"] == f"{own.parameters['train.lr']:.4g}"
        assert run.data.params["train.lr"] == str(own.parameters["train.lr"])  # as it was used
    (parent,) = client.search_runs(
        [found.experiment_id], f"tags.akd.kind = 'study' and tags.akd.study = '{study.name}'"
    )
    assert len(parent.data.metrics) < 30


def test_data_and_teacher_are_inputs(study: Path, client: MlflowClient) -> None:
    """Of the study and every run that learns from the teacher, which is one model however many there are."""
    found = client.get_experiment_by_name("view")
    assert found is not None
    (teacher,) = client.search_logged_models([found.experiment_id], filter_string="tags.`akd.kind` = 'teacher'")
    assert str(teacher.status) == "READY"
    for run in client.search_runs([found.experiment_id], f"tags.akd.study = '{study.name}'", max_results=1000):
        contexts = [i.tags[0].value for i in run.inputs.dataset_inputs]
        final = run.data.tags["akd.kind"] == "final"
        assert sorted(contexts) == (["test", "training and validation"] if final else ["training", "validation"])
        alone = run.info.run_name.startswith(("control none", "none seed"))
        # made_study gives a control the settings of the study: its own are those of the name.
        # A search for runs leaves out what models they read.
        models = [m.model_id for m in client.get_run(run.info.run_id).inputs.model_inputs]
        assert models in ([[teacher.model_id], []] if alone else [[teacher.model_id]]), run.info.run_name


def test_the_view_has_the_columns_and_is_the_study_s_own(study: Path, client: MlflowClient) -> None:
    found = client.get_experiment_by_name("view")
    assert found is not None
    saved = {k: json.loads(v) for k, v in found.tags.items() if k.startswith("mlflow.sharedViewState.")}
    assert {view["name"] for view in saved.values()} == {"s: trials", "other: trials"}
    view = saved["mlflow.sharedViewState.akd-s"]
    kind, _, packed = view["state"].partition(";")
    assert kind == "deflate"
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    wanted = ["metrics.`val/accuracy`", "metrics.`trial`", "params.`_count`", "params.`_lr`", "params.`_margin`"]
    assert set(wanted) <= set(state["selectedColumns"])
    assert set(runs(client, state["searchFilter"])) == set(facts(study))
    key, value = trials_view("s", ["_lr"], 1000)
    assert key == "mlflow.sharedViewState.akd-s"
    assert len(value) < 5000  # MLflow's limit for a tag of an experiment


def test_addresses(study: Path) -> None:
    store = default_uri(study.parent)
    page = study_address(study.parent, "s", store, "http://x")
    assert "/runs/" in page
    assert page.endswith("?workflowType=machine_learning")
    assert trials_address(study.parent, "s", store, "http://x").endswith("&viewStateShareKey=akd-s")
    assert trials_address(study.parent, "s", "sqlite:////elsewhere/mlflow.db", "http://x") == ""
