"""``akd report --verify``: a study that agrees is verified; each kind of damage is named by the line of its check."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import made_study
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as Logged

from akd import cli, front
from akd.folder import FAILED, RUNNING, Run
from akd.logged import default_uri
from akd.tracking import Tracker

Say = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with study ``s`` in it and in its MLflow store."""
    output = tmp_path_factory.mktemp("origin") / "runs"
    study = made_study.make(output / "s")
    tracker = Tracker(default_uri(output), output, study, "digits: wrn_16_1 to resnet8", retry_s=0.01)
    for path in sorted(study.glob("*/*/run.json")):
        tracker.changed(path.parent)
    assert tracker.close()
    return output


@pytest.fixture
def study(origin: Path, tmp_path: Path) -> Path:
    """A copy to damage: folder, journal and MLflow's store."""
    shutil.copytree(origin, tmp_path / "runs")
    return tmp_path / "runs" / "s"


@pytest.fixture
def say(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Exit code, what each check says, and the verdict."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str) -> tuple[int, dict[str, str], str]:
        before = {p: p.stat().st_mtime_ns for p in study.rglob("*")}
        code = cli.main(["report", "s", "--output", str(study.parent), "--verify", *arguments])
        assert {p: p.stat().st_mtime_ns for p in study.rglob("*")} == before  # nothing is written
        out, err = capsys.readouterr()
        lines = {line[7:20].strip(): line for line in out.splitlines() if line[:7].strip() in ("ok", "WRONG")}
        return code, lines, err.strip() or out.splitlines()[-1]

    return call


def wrong(lines: dict[str, str]) -> set[str]:
    return {name for name, line in lines.items() if line.startswith("WRONG")}


def store(study: Path) -> MlflowClient:
    return MlflowClient(default_uri(study.parent))


def logged(study: Path, name: str) -> Logged:
    client = store(study)
    experiment = client.get_experiment_by_name("digits: wrn_16_1 to resnet8")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


def copy_run(study: Path, name: str, **tags: str) -> None:
    """A second run in MLflow with all the first one has."""
    client, run = store(study), logged(study, name)
    again = client.create_run(run.info.experiment_id, tags=run.data.tags | tags, run_name=name).info.run_id
    points = [p for key in run.data.metrics for p in client.get_metric_history(run.info.run_id, key)]
    metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
    client.log_batch(again, metrics, [Param(k, v) for k, v in run.data.params.items()], [RunTag("copied", "yes")])
    client.set_terminated(again)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def journal(study: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Rewrite Optuna's journal, one operation after the other; those for which ``change`` says False are dropped."""
    path = study / "optuna.log"
    operations = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [o for o in operations if change(o) is not False]
    path.write_text("".join(json.dumps(o) + "\n" for o in kept), encoding="utf-8")


def test_a_whole_study_is_verified(say: Say) -> None:
    code, lines, verdict = say()
    assert code == 0
    assert wrong(lines) == set()
    assert verdict == "verified: folders, Optuna and MLflow agree"
    names = "files, MLflow, trials, no run twice, states, counts, accuracy, epochs, parameters, controls, confirmation"
    assert ", ".join(lines) == f"{names}, final runs, result"
    assert "8 folders, 8 in Optuna, 8 in MLflow" in lines["trials"]
    assert "20 runs in MLflow, each of one folder" in lines["no run twice"]
    assert "5 COMPLETE, 1 FAILED, 2 PRUNED in all three" in lines["counts"]
    assert "5 finished trials" in lines["accuracy"]
    assert all(len(line) <= 100 for line in lines.values() if "MLflow at" not in line and "answers" not in line)


def test_a_removed_trial_folder(study: Path, say: Say) -> None:
    shutil.rmtree(study / "trials" / "00003")
    code, lines, verdict = say()
    assert code == 1
    assert "trial 3 is in Optuna and has no folder" in lines["trials"]
    assert "MLflow has a run 'trial 3' that has no folder" in lines["no run twice"]
    assert "folders: 4 COMPLETE" in lines["counts"]
    assert "result.json counts" in lines["result"]
    assert wrong(lines) == {"trials", "no run twice", "counts", "result"}
    assert verdict == "akd: NOT VERIFIED: trials, no run twice, counts, result"


def test_a_trial_folder_optuna_does_not_know(study: Path, say: Say) -> None:
    shutil.copytree(study / "trials" / "00004", study / "trials" / "00008")
    edit(study / "trials" / "00008" / "run.json", '"number": 4', '"number": 8')
    _, lines, _ = say()
    assert "trial 8 has a folder and is not in Optuna" in lines["trials"]


def test_a_changed_metric_in_the_last_epoch(study: Path, say: Say) -> None:
    history = study / "trials" / "00001" / "history.jsonl"
    rows = history.read_text(encoding="utf-8").splitlines()
    last = json.loads(rows[-1])
    rows[-1] = json.dumps(last | {"val/accuracy": last["val/accuracy"] - 1e-6})
    history.write_text("\n".join(rows) + "\n", encoding="utf-8")
    code, lines, _ = say()
    assert code == 1
    assert "trial 1: folder" in lines["accuracy"]
    assert wrong(lines) >= {"accuracy", "epochs"}


def test_a_changed_metric_in_an_epoch_before(study: Path, say: Say) -> None:
    history = study / "trials" / "00002" / "history.jsonl"  # a stopped trial: no final value anywhere
    rows = history.read_text(encoding="utf-8").splitlines()
    rows[1] = json.dumps(json.loads(rows[1]) | {"val/accuracy": 0.5})
    history.write_text("\n".join(rows) + "\n", encoding="utf-8")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"epochs"})
    assert "trial 2, Optuna: epoch 2 is" in lines["epochs"]
    assert "trial 2, MLflow: epoch 2 is" in lines["epochs"]


def test_a_metric_changed_in_mlflow(study: Path, say: Say) -> None:
    run = logged(study, "trial 0")
    store(study).log_metric(run.info.run_id, "val/accuracy", 0.25, step=9, timestamp=10**13)
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"accuracy", "epochs"})
    assert "MLflow 25.0000 %" in lines["accuracy"]
    assert "an epoch is there twice" in lines["epochs"]


def test_a_duplicated_run(study: Path, say: Say) -> None:
    copy_run(study, "trial 1")
    code, lines, verdict = say()
    assert code == 1
    assert "trial 1 has 2 runs in MLflow" in lines["no run twice"]
    assert "MLflow: 6 COMPLETE" in lines["counts"]
    assert wrong(lines) == {"no run twice", "counts"}
    assert verdict == "akd: NOT VERIFIED: no run twice, counts"


def test_a_duplicate_with_another_mark(study: Path, say: Say) -> None:
    copy_run(study, "trial 1", **{"akd.mark": "s/00001@1"})
    _, lines, _ = say()
    assert "MLflow has a run 'trial 1' that has no folder" in lines["no run twice"]


def test_the_study_twice(study: Path, say: Say) -> None:
    copy_run(study, "s")
    _, lines, _ = say()
    assert "the study has 2 runs in MLflow" in lines["no run twice"]


def test_runs_of_an_evaluation_and_of_an_earlier_study_are_no_duplicates(study: Path, say: Say) -> None:
    run, client = logged(study, "trial 1"), store(study)
    client.create_run(run.info.experiment_id, tags={"akd.study": "s", "akd.kind": "evaluation"})
    client.create_run(run.info.experiment_id, tags={"akd.study": "s", "akd.kind": "trial", "akd.mark": "s/00001@5"})
    assert say()[0] == 0


def test_a_state_changed_in_optuna(study: Path, say: Say) -> None:
    def prune(operation: dict[str, object]) -> None:
        if operation["op_code"] == 6 and operation["trial_id"] == 0 and operation["state"] == 1:
            operation["state"], operation["values"] = 2, None

    journal(study, prune)
    code, lines, _ = say()
    assert code == 1
    assert "trial 0: folder says COMPLETE, Optuna says PRUNED, MLflow says COMPLETE" in lines["states"]
    assert "Optuna: 4 COMPLETE, 1 FAILED, 3 PRUNED" in lines["counts"]
    assert "Optuna nothing" in lines["accuracy"]


def test_a_state_changed_in_mlflow(study: Path, say: Say) -> None:
    store(study).set_terminated(logged(study, "trial 4").info.run_id, "FAILED")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"states"})
    assert "MLflow says COMPLETE (FAILED)" in lines["states"]


def test_an_epoch_missing_in_optuna(study: Path, say: Say) -> None:
    journal(study, lambda o: not (o["op_code"] == 7 and o["trial_id"] == 1 and o["step"] == 4))
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"epochs"})
    assert "trial 1, Optuna: epoch 4 is nothing" in lines["epochs"]


def test_changed_parameters(study: Path, say: Say) -> None:
    run = Run.read(study / "trials" / "00000")
    assert run is not None
    run.parameters["train.lr"] *= 2
    run.write(study / "trials" / "00000")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"parameters"})
    assert lines["parameters"].count("trial 0: train.lr is") == 2  # against Optuna and against MLflow


def test_a_control_that_is_missing_or_failed(study: Path, say: Say) -> None:
    run = Run.read(study / "controls" / "none")
    assert run is not None
    run.end(study / "controls" / "none", FAILED, "it diverged")
    shutil.rmtree(study / "controls" / "kd")
    _, lines, _ = say()
    assert "controls/kd is missing" in lines["controls"]
    assert "control none: folder says FAILED, MLflow says COMPLETE" in lines["states"]


def test_a_control_twice_in_mlflow(study: Path, say: Say) -> None:
    copy_run(study, "control kd")
    _, lines, _ = say()
    assert "controls/kd has 2 runs in MLflow" in lines["controls"]


def test_a_final_run_that_is_missing(study: Path, say: Say) -> None:
    shutil.rmtree(study / "finals" / "champion-seed2")
    _, lines, _ = say()
    assert "finals/champion-seed2 is missing" in lines["final runs"]
    assert "champion seed 2" in lines["result"]


def test_a_changed_test_accuracy(study: Path, say: Say) -> None:
    run = Run.read(study / "finals" / "kd-seed1")
    assert run is not None
    run.results["test/accuracy"] = 0.5
    run.write(study / "finals" / "kd-seed1")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"final runs", "result"})
    assert "kd seed 1: test accuracy 50.0000 %, in MLflow" in lines["final runs"]


def test_a_result_that_names_other_numbers(study: Path, say: Say) -> None:
    kept = json.loads((study / "result.json").read_text(encoding="utf-8"))
    kept["best_trial"]["validation_accuracy"] = 0.999
    (study / "result.json").write_text(json.dumps(kept), encoding="utf-8")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"result"})
    assert "the best trial: 0.999" in lines["result"]


def test_damaged_files(study: Path, say: Say) -> None:
    (study / "trials" / "00002" / "run.json").write_text("{", encoding="utf-8")
    _, lines, _ = say()
    assert "trials/00002 is damaged" in lines["files"]
    (study / "optuna.log").write_text("nonsense\n", encoding="utf-8")
    code, _, verdict = say()
    assert code == 1
    assert "optuna.log cannot be read" in verdict


def test_a_study_that_has_not_ended(study: Path, say: Say) -> None:
    own = Run.read(study)
    assert own is not None
    own.state, own.ended, own.results = RUNNING, None, {}
    own.write(study)
    (study / "result.json").unlink()
    for path in [*study.glob("finals/*-seed3"), *study.glob("finals/*-seed2")]:
        shutil.rmtree(path)
    client = store(study)
    for name in ("champion", "none", "kd"):
        for seed in (2, 3):
            client.delete_run(logged(study, f"{name} seed {seed}").info.run_id)
    code, lines, verdict = say()
    assert (code, wrong(lines)) == (0, set())
    assert "3 so far" in lines["final runs"]
    assert "the search has not ended" in verdict


def test_a_run_that_goes_on_may_be_ahead_but_not_behind(study: Path, say: Say) -> None:
    for path in (study, study / "trials" / "00002"):
        run = Run.read(path)
        assert run is not None
        run.state, run.ended, run.results = RUNNING, None, {}
        run.write(path)
    client, parent = store(study), logged(study, "trial 2")
    client.update_run(parent.info.run_id, status="RUNNING")
    client.set_tag(parent.info.run_id, "akd.status", RUNNING)
    (study / "result.json").unlink()

    def running(operation: dict[str, object]) -> bool:
        ended = operation["op_code"] == 6 and operation["trial_id"] == 2 and operation["state"] == 2
        return not ended and not (operation["op_code"] == 7 and operation["trial_id"] == 2 and operation["step"] == 3)

    journal(study, running)  # as Optuna stands between an epoch and the word of it
    code, lines, _ = say()
    assert (code, wrong(lines)) == (0, set())
    assert "1 run may be ahead of Optuna and MLflow" in lines["epochs"]
    history = study / "trials" / "00002" / "history.jsonl"
    rows = history.read_text(encoding="utf-8").splitlines()
    history.write_text(rows[0] + "\n", encoding="utf-8")
    code, lines, _ = say()
    assert (code, wrong(lines)) == (1, {"epochs"})
    assert "trial 2, Optuna: epoch 2 is" in lines["epochs"]


class TestTracker:
    def test_nobody_answers(self, say: Say) -> None:
        code, lines, verdict = say("--tracking-uri", "http://127.0.0.1:1")
        assert (code, wrong(lines)) == (1, {"MLflow"})
        assert "does not answer: Connection refused" in lines["MLflow"]
        assert verdict == "akd: NOT VERIFIED: folders and Optuna agree, MLflow could not be asked"

    def test_no_such_file(self, say: Say, tmp_path: Path) -> None:
        code, lines, _ = say("--tracking-uri", f"sqlite:///{tmp_path}/none.db")
        assert (code, wrong(lines)) == (1, {"MLflow"})
        assert "there is no such file" in lines["MLflow"]
        assert not (tmp_path / "none.db").exists()

    def test_a_store_without_the_study(self, study: Path, say: Say) -> None:
        store(study).rename_experiment(logged(study, "s").info.experiment_id, "another")
        code, lines, _ = say()
        assert (code, wrong(lines)) == (1, {"MLflow"})
        assert "it has no experiment 'digits: wrn_16_1 to resnet8'" in lines["MLflow"]

    def test_a_server_that_is_none(self, say: Say) -> None:
        class Nonsense(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Nonsense)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            code, lines, _ = say("--tracking-uri", f"http://user:pass@127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
        assert (code, wrong(lines)) == (1, {"MLflow"})
        assert "cannot be read" in lines["MLflow"]
        assert "pass" not in lines["MLflow"]


class TestFront:
    """A study with two objectives: costs and front are in all three."""

    @pytest.fixture(scope="class")
    def origin(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        output = tmp_path_factory.mktemp("fronts") / "runs"
        study = made_study.make(output / "s", made_study.FRONT, 12)
        tracker = Tracker(default_uri(output), output, study, "digits: wrn_16_1 to resnet8", retry_s=0.01)
        for path in sorted(study.glob("*/*/run.json")):
            tracker.changed(path.parent)
        tagged = [member["number"] for member in front.members(study)]
        front.tag(tracker, study, [0, 1, 3])  # as of an earlier end of the study
        front.tag(tracker, study, tagged)
        assert tracker.close()
        return output

    def test_a_whole_study(self, study: Path, say: Say) -> None:
        code, lines, _ = say()
        assert (code, wrong(lines)) == (0, set())
        assert lines["costs"].endswith("the same in folders and MLflow; of 7 finished trials in Optuna, too")
        assert "of 2 trials is the same, and tagged in MLflow" in lines["front"]

    def test_mlflow_lists_the_front(self, study: Path) -> None:
        client = store(study)
        experiment = client.get_experiment_by_name("digits: wrn_16_1 to resnet8")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.akd.front = 'yes'")
        members = front.members(study)
        assert {run.data.tags["akd.trial"] for run in found} == {str(m["number"]) for m in members}
        assert {run.data.metrics["cost/parameters"] for run in found} == {m["values"]["parameters"] for m in members}

    def test_a_changed_cost(self, study: Path, say: Say) -> None:
        number = front.members(study)[1]["number"]
        edit(
            study / "trials" / f"{number:05d}" / "run.json", '"cost/parameters": 77754.0', '"cost/parameters": 77755.0'
        )
        _, lines, _ = say()
        assert wrong(lines) == {"costs", "front"}
        assert f"trial {number}: cost/parameters is 77755, in MLflow 77754.0" in lines["costs"]
        assert f"trial {number}: costs 77755.0, in Optuna 77754.0" in lines["costs"]

    def test_another_value_in_optuna(self, study: Path, say: Say) -> None:
        number = front.members(study)[0]["number"]

        def change(operation: dict[str, object]) -> None:
            if operation["op_code"] == 6 and operation.get("trial_id") == number and operation.get("values"):
                operation["values"] = [operation["values"][0], 3.0]  # type: ignore[index]

        journal(study, change)
        _, lines, _ = say()
        assert wrong(lines) == {"costs"}

    def test_a_tag_that_stayed_and_one_that_is_gone(self, study: Path, say: Say) -> None:
        number = front.members(study)[0]["number"]
        store(study).delete_tag(logged(study, f"trial {number}").info.run_id, "akd.front")
        other = next(n for n in range(12) if n not in [m["number"] for m in front.members(study)])
        store(study).set_tag(logged(study, f"trial {other}").info.run_id, "akd.front", "yes")
        _, lines, _ = say()
        assert wrong(lines) == {"front"}
        assert f"trial {number} is on it, MLflow's tag says otherwise" in lines["front"]
        assert f"trial {other} is not on it" in lines["front"]

    def test_another_front_in_the_result(self, study: Path, say: Say) -> None:
        number = front.members(study)[1]["number"]
        result = json.loads((study / "result.json").read_text())
        result["front"] = result["front"][:1]
        (study / "result.json").write_text(json.dumps(result))
        _, lines, _ = say()
        assert wrong(lines) == {"front"}
        assert f"{number}] by their folders" in lines["front"]

    def test_another_value_in_the_result(self, study: Path, say: Say) -> None:
        result = json.loads((study / "result.json").read_text())
        result["front"][0]["values"]["parameters"] += 1
        (study / "result.json").write_text(json.dumps(result))
        _, lines, _ = say()
        assert wrong(lines) == {"front"}
        assert f"trial {result['front'][0]['number']} has other values in result.json" in lines["front"]
