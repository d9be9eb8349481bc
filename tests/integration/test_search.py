"""One real search (Ray Tune, Optuna, MLflow) and everything it must leave behind."""

from __future__ import annotations

import contextlib
import json
import math
import urllib.request
from dataclasses import replace
from pathlib import Path

import optuna
import program
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

import akd
from akd import cli
from akd import folder as run_folder
from akd.config import load as load_experiment
from akd.data import DataConfig, load, split
from akd.metrics import evaluate
from akd.result import StudyResult
from akd.searcher import open_study
from akd.summary import verdict
from akd.teacher.keep import load_student

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    code, output = program.run(
        ["search", "small.yaml", "--name", "first", "--log-checkpoints", "all", "--confirm", "3"], folder
    )
    assert code == 0, output
    return folder / "runs" / "first"


@pytest.fixture(scope="module")
def output(study: Path) -> str:
    return (study.parents[1] / "out.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client(study: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{study.parent}/mlflow.db")


def test_result_file_tells_the_whole_story(study: Path) -> None:
    result = program.read(study / "result.json")
    assert result["study"] == "first"
    assert (result["data"], result["teacher"], result["student"]) == ("digits", "wrn_16_1", "resnet8")
    assert set(result["controls"]) == {"none", "kd"}
    assert set(result["gain"]) == {"none", "kd"}
    assert set(result["champion"]["test"]["accuracy"]) == {"1", "2"}
    assert sum(result["trials"].values()) == 3
    best = result["best_trial"]
    assert set(best["parameters"]) == {"method.host.weight", "train.lr"}
    assert result["effective_soft_target_weight"] == pytest.approx(best["parameters"]["method.host.weight"] * 16)
    for name in ("none", "kd"):
        seeds = result["controls"][name]["test"]["accuracy"]
        differences = [100 * (result["champion"]["test"]["accuracy"][s] - seeds[s]) for s in seeds]
        assert result["gain"][name]["mean"] == pytest.approx(sum(differences) / 2)
        low, high = result["gain"][name]["low"], result["gain"][name]["high"]
        # Two pairs: half the difference of the pairs times Student's t for one degree of freedom, at 97.5 % for each of
        # two controls, so that both intervals hold with 95 %.
        assert high - low == pytest.approx(abs(differences[0] - differences[1]) * 25.4517, rel=1e-4)
    passes = 480 // 64 * 64
    epochs = sum(len(e) for n, e in program.epochs_of(study).items() if n.startswith("trials") or "kd" in n)
    finals = 2 * 2 * 3 * (600 // 64 * 64)
    # The teacher ran once over the images of each epoch, and once over those of each epoch and seed of the final runs.
    made = 480 * 3 + 600 * 3 * 2
    parts = ("trials", "confirm")
    trial_epochs = sum(len(e) for n, e in program.epochs_of(study).items() if n.startswith(parts))
    assert epochs
    told = result["teacher_passes"]
    assert (told["made"], told["made"] + told["saved"]) == (made, passes * (trial_epochs + 3) + finals)
    assert told["keys"] == 3
    assert 20 * made < told["bytes"] < 40 * made  # ten classes in half precision, and a header each part
    parent = MlflowClient(f"sqlite:///{study.parent}/mlflow.db").get_run(result["mlflow"]["run_id"])
    assert {k: parent.data.metrics[f"teacher/{k}"] for k in told} == told
    output = (study.parents[1] / "out.txt").read_text(encoding="utf-8")
    assert "the teacher runs once per image and view; kept are logits (1 key)" in output
    assert f"run on {made:,} images instead of {told['made'] + told['saved']:,}" in output


def test_winner_is_the_best_of_the_first_finished_trials_over_other_seeds(study: Path) -> None:
    result = program.read(study / "result.json")
    finished = {}
    for path in (study / "trials").glob("*/run.json"):
        run = run_folder.Run.read(path.parent)
        assert run is not None
        if run.state == run_folder.COMPLETE:
            finished[run.number] = run_folder.accuracy(path.parent)
    number, told = result["best_trial"]["number"], result["confirmation"]
    assert result["best_trial"]["validation_accuracy"] == finished[number]
    if len(finished) < 2:
        assert told == {}
        return
    assert [t["number"] for t in told["trials"]] == sorted(finished, key=lambda n: (-finished[n], n))[:3]
    assert told["winner"] == number
    for trial in told["trials"]:
        for seed, accuracy in trial["accuracy"].items():
            folder = study / "confirm" / f"{trial['number']:05d}-seed{seed}"
            assert accuracy == run_folder.accuracy(folder)
            config, mine = (load_experiment(f / "experiment.yaml", {}, strict=False) for f in (folder, _trial(folder)))
            assert config == replace(mine, train=replace(mine.train, seed=int(seed)))
    means = {t["number"]: t["mean"] for t in told["trials"] if not t["dropped"]}
    assert means[number] == max(means.values())


def _trial(folder: Path) -> Path:
    """The folder of the trial that a confirmation run trains again."""
    return folder.parents[1] / "trials" / folder.name.partition("-")[0]


def test_test_images_were_met_once_and_by_final_runs_only(study: Path) -> None:
    for part, wanted in (
        ("trials", set()),
        ("controls", set()),
        ("confirm", set()),
        ("finals", {"test/accuracy", "test/loss"}),
    ):
        for path in (study / part).glob("*/run.json"):
            run = run_folder.Run.read(path.parent)
            assert run is not None
            assert {key for key in run.results if not key.startswith("cost/")} == wanted
            assert not any(key.startswith("test") for e in run_folder.history(path.parent) for key in e)


def test_final_runs_train_on_all_training_images_with_the_same_seeds(study: Path) -> None:
    names = sorted(p.name for p in (study / "finals").iterdir())
    assert names == [f"{n}-seed{s}" for n in ("champion", "kd", "none") for s in (1, 2)]
    for path in (study / "finals").iterdir():
        assert all("val/accuracy" not in e for e in run_folder.history(path))
        assert len(run_folder.history(path)) == 3


def test_champion_on_disk_has_the_accuracy_that_was_told(study: Path) -> None:
    result = program.read(study / "result.json")
    student = load_student(study / "champion")
    data = load(DataConfig())
    mean, std = torch.tensor(data.mean).view(1, -1, 1, 1), torch.tensor(data.std).view(1, -1, 1, 1)
    images = (data.test_images.float() / 255 - mean) / std
    scores = evaluate(student, [(images, data.test_labels)])
    assert scores["accuracy"] == pytest.approx(result["champion"]["test"]["accuracy"]["1"], abs=1e-9)


def test_the_champion_has_a_card_and_can_be_taken_away(study: Path, tmp_path: Path) -> None:
    result = StudyResult.read(study)
    assert result is not None
    card = (study / "champion" / "README.md").read_text(encoding="utf-8")
    assert verdict(result) in card
    assert "(seed 1, the first, not the best)" in card
    assert cli.main(["export", str(study), "--to", str(tmp_path / "out"), "--format", "safetensors,torch"]) == 0
    # On the test images themselves: what the program's card measured is what the final run was told.
    accuracy = result.champion["test"]["accuracy"]["1"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"on 360 test images: top-1 {100 * accuracy:.2f} %" in card
    assert verdict(result) in card


def test_trial_student_on_disk_has_its_validation_accuracy(study: Path) -> None:
    config = DataConfig(validation=0.2, subset=600)
    data = split(config, load(config))
    folder = study / "trials" / "00000"
    mean, std = torch.tensor(data.dataset.mean).view(1, -1, 1, 1), torch.tensor(data.dataset.std).view(1, -1, 1, 1)
    images = (data.dataset.images[data.val].float() / 255 - mean) / std
    scores = evaluate(load_student(folder / "student"), [(images, data.dataset.labels[data.val])])
    assert scores["accuracy"] == pytest.approx(run_folder.accuracy(folder), abs=1e-9)


def test_optuna_agrees_with_the_folders(study: Path) -> None:
    told = open_study(study / "optuna.log", "first")
    assert [t.number for t in told.trials] == [0, 1, 2]  # controls are not among them
    for trial in told.trials:
        folder = study / "trials" / f"{trial.number:05d}"
        run = run_folder.Run.read(folder)
        assert run is not None
        assert trial.state.name == run.state
        assert trial.params == run.parameters
        values = {int(e["epoch"]): e["val/accuracy"] for e in run_folder.history(folder)}
        assert trial.intermediate_values == values
        if trial.state == optuna.trial.TrialState.COMPLETE:
            assert trial.value == values[3]


def test_mlflow_has_a_parent_and_a_child_for_every_run(study: Path, client: MlflowClient) -> None:
    result = program.read(study / "result.json")
    experiment = client.get_experiment_by_name("digits: wrn_16_1 to resnet8")
    assert experiment is not None
    assert experiment.experiment_id == result["mlflow"]["experiment_id"]
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    again = len(list(study.glob("confirm/*")))  # none where ASHA let a single trial finish
    kinds = sorted(r.data.tags["akd.kind"] for r in runs)
    assert kinds == ["confirm"] * again + ["control"] * 2 + ["final"] * 6 + ["study", "teacher"] + ["trial"] * 3
    parent = result["mlflow"]["run_id"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.info.end_time >= run.info.start_time
        if run.info.run_id != parent:
            assert run.data.tags["mlflow.parentRunId"] == parent
        assert len(run.data.metrics) < 30
    assert {a.path for a in client.list_artifacts(parent)} >= {"experiment.yaml", "result.json", "report.html"}


def test_mlflow_trials_hold_parameters_curves_tags_and_students(study: Path, client: MlflowClient) -> None:
    for folder in sorted((study / "trials").iterdir()):
        run_id = next(iter(program.read(folder / "mlflow.json").values()))["run_id"]
        run, entries = client.get_run(run_id), run_folder.history(folder)
        kept = run_folder.Run.read(folder)
        assert kept is not None
        assert run.data.tags["akd.trial"] == str(kept.number)
        assert run.data.tags["akd.status"] == kept.state
        assert run.data.tags["akd.method"] == "kd"
        assert float(run.data.params["train.lr"]) == kept.parameters["train.lr"]
        for key in ("val/accuracy", "loss/kd", "loss/ce", "train/loss"):
            curve = client.get_metric_history(run_id, key)
            assert [(m.step, m.value) for m in curve] == [(e["epoch"], e[key]) for e in entries]
        paths = {a.path for a in client.list_artifacts(run_id, "student")}
        assert paths == {"student/student.safetensors", "student/config.json"}
        every = {a.path for a in client.list_artifacts(run_id, "students")}  # --log-checkpoints all
        assert every == {f"students/epoch_{int(e['epoch']):06d}" for e in entries}


def test_champion_is_registered_under_its_alias(study: Path, client: MlflowClient, tmp_path: Path) -> None:
    version = client.get_model_version_by_alias("akd-digits-resnet8", "champion")
    result = program.read(study / "result.json")
    assert version.run_id == result["mlflow"]["champion_run_id"]
    local = client.download_artifacts(version.run_id, "student", str(tmp_path))
    mine = load_file(study / "champion" / "student.safetensors")
    theirs = load_file(Path(local) / "student.safetensors")
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_output_names_what_a_user_needs_next(study: Path, output: str) -> None:
    assert all(len(line) <= 100 for line in output.splitlines())
    for text in (
        "winner: kd, resnet8",
        "student alone",
        "plain KD",
        "akd ui first",
        "runs/first/champion/student",
        "runs/first/report.html",
    ):
        assert text in output
    assert "Traceback" not in output
    assert "Warning" not in output


def test_warm_workers_start_the_next_trial_quickly(study: Path) -> None:
    costs = program.read(study / "result.json")["start_cost_s"]
    assert 0 < costs["median"] <= costs["largest"]
    assert math.isfinite(costs["largest"])


def test_report_tells_the_result_and_is_what_mlflow_shows(study: Path, client: MlflowClient, tmp_path: Path) -> None:
    result, page = program.read(study / "result.json"), (study / "report.html").read_text(encoding="utf-8")
    assert f"Trial {result['best_trial']['number']} of 3 won: kd with" in page
    assert f"{100 * result['champion']['test']['mean']:.2f} ±" in page
    assert f"akd {akd.__version__}, Python" in page
    assert str(study) not in page
    logged = client.download_artifacts(result["mlflow"]["run_id"], "report.html", str(tmp_path))
    assert Path(logged).read_text(encoding="utf-8") == page


def test_folders_optuna_and_mlflow_agree(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "first", "--output", str(study.parent), "--verify"]) == 0
    assert "verified: folders, Optuna and MLflow agree" in capsys.readouterr().out


def test_second_search_finds_the_teacher(study: Path) -> None:
    folder = study.parents[1]
    trained = (study.parent / "teachers").glob("*/student/student.safetensors")
    before = {p: p.stat().st_mtime_ns for p in trained}
    code, output = program.run(
        ["search", "small.yaml", "--name", "second", "--trials", "1", "--epochs", "1", "--champion-seeds", "1"], folder
    )
    assert code == 0, output
    assert "teacher wrn_16_1: found" in output
    after = {p: p.stat().st_mtime_ns for p in (study.parent / "teachers").glob("*/student/student.safetensors")}
    assert after == before
    result = program.read(folder / "runs" / "second" / "result.json")
    assert result["gain"]["none"]["low"] is None  # one seed has no interval


def test_ui_serves_the_study_on_loopback(study: Path, tmp_path: Path) -> None:
    result = program.read(study / "result.json")
    port = 5061
    process = program.start(["ui", "first", "--output", str(study.parent), "--port", str(port)], tmp_path)
    try:

        def answer() -> bytes | None:
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as page:
                return page.read()
            return None

        assert program.wait_for(answer) == b"OK"
        where = f"experiments/{result['mlflow']['experiment_id']}/runs/{result['mlflow']['run_id']}"
        assert f"http://127.0.0.1:{port}/#/{where}" in (tmp_path / "out.txt").read_text()
        # The server itself must be able to hand out a trial's student.
        run_id = result["mlflow"]["best_trial_run_id"]
        address = f"http://127.0.0.1:{port}/get-artifact?path=student/config.json&run_uuid={run_id}"
        with urllib.request.urlopen(address) as page:
            assert json.load(page)["model"] == "resnet8"
        found = program.listening(program.session_members(process.pid))
        assert {(one.kind, one.outside) for one in found} == {("MLflow", False)}
    finally:
        program.kill_group(process)
