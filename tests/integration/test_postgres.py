"""A search whose MLflow keeps its records in PostgreSQL: by itself, behind a server, and away for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import postgres
import program
import pytest
from mlflow import MlflowClient
from server import Server

from akd import folder as run_folder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there is one"),
]

SEARCH = ["search", "small.yaml", "--name", "s", "--champion-seeds", "1", "--concurrent", "1"]


@pytest.fixture
def database() -> Iterator[postgres.Postgres]:
    made = postgres.Postgres()
    try:
        made.start()
        yield made
    finally:
        with contextlib.suppress(AssertionError):  # a test may have stopped it
            made.stop()
        made.remove()


def everything_is_there(uri: str) -> None:
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    marks = [r.data.tags["akd.mark"] for r in runs]
    assert len(marks) == len(set(marks)) >= 10
    assert {r.info.status for r in runs} == {"FINISHED"}
    trials = client.search_runs(
        [experiment.experiment_id], "tags.akd.kind = 'trial'", order_by=["metrics.`val/accuracy` DESC"]
    )
    values = [r.data.metrics["val/accuracy"] for r in trials]
    assert values == sorted(values, reverse=True)
    for inputs in (client.get_run(trial.info.run_id).inputs for trial in trials):
        assert len(inputs.dataset_inputs) == 2
        assert len(inputs.model_inputs) == 1
    (version,) = client.search_model_versions()
    assert client.get_model_version_by_alias(version.name, "champion").version == version.version


def no_password_in(*places: Path) -> None:
    for path in (p for place in places for p in (place.rglob("*") if place.is_dir() else [place])):
        if path.is_file():
            content = path.read_bytes()
            for secret in (postgres.Postgres.password.encode(), b"ses%2Fa%40me"):
                assert secret not in content, path


def test_its_address_as_the_tracking_address(database: postgres.Postgres, tmp_path: Path) -> None:
    """The driver writes it itself; it goes away in the middle and comes back."""
    process = program.start([*SEARCH, "--epochs", "30", "--tracking-uri", database.uri], tmp_path)
    study = tmp_path / "runs" / "s"
    try:
        program.wait_for(lambda: len(run_folder.history(study / "trials" / "00000")) >= 2)
        database.stop()
        program.wait_for(lambda: "did not take a write" in (tmp_path / "out.txt").read_text())
        database.start()
        assert process.wait(600) == 0, (tmp_path / "out.txt").read_text()
    finally:
        program.kill_group(process)
    everything_is_there(database.uri)
    code, said = program.run(["report", "s", "--verify", "--tracking-uri", database.uri], tmp_path)
    assert code == 0, said
    (tmp_path / "said.txt").write_text(said, encoding="utf-8")
    no_password_in(tmp_path / "out.txt", tmp_path / "said.txt", tmp_path / "runs")


def test_a_server_in_front_of_it(database: postgres.Postgres, tmp_path: Path) -> None:
    server = Server(tmp_path, program.free_port(), store=database.uri)
    server.start(wait=True)
    try:
        code, output = program.run([*SEARCH, "--tracking-uri", server.uri], tmp_path)
        assert code == 0, output
        everything_is_there(server.uri)
        code, said = program.run(["report", "s", "--verify", "--tracking-uri", server.uri], tmp_path)
        assert code == 0, said
    finally:
        server.kill()
