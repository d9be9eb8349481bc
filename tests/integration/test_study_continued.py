"""A real search that is interrupted, replayed, given more trials, and that another one starts from."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import program
import pytest
from studies import ONE

from akd import folder as run_folder
from akd.folder import COMPLETE, PRUNED, Run

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3600)]

ARGUMENTS = [a if a != "5" else "6" for a in ONE]


def epochs_of(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Wait until a run has so many epochs; not for a search that has ended."""

    def there() -> bool:
        assert process.poll() is None
        return len(run_folder.history(folder)) >= count

    program.wait_for(there, timeout=600)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, whose trial 0 was killed in its second epoch and resumed."""
    folder = tmp_path_factory.mktemp("going")
    study = folder / "runs" / "s"
    process = program.start(ARGUMENTS, folder)
    try:
        epochs_of(process, study / "trials" / "00000", 2)
    finally:
        program.kill_group(process)
    code, output = program.run(["search", "--resume", "s"], folder, timeout=1800)
    assert code == 0, output
    return study


def runs(study: Path, part: str) -> dict[str, Run]:
    return {p.parent.name: r for p in sorted(study.glob(f"{part}/*/run.json")) if (r := Run.read(p.parent))}


def verified(study: Path) -> None:
    code, output = program.run(["report", study.name, "--verify"], study.parents[1])
    assert code == 0, output


def test_replay_gives_identical_bits(study: Path) -> None:
    """Of a trial that was killed and resumed, of finished ones, of stopped ones, of controls and final runs."""
    folder, trials = study.parents[1], runs(study, "trials")
    stopped = [n for n, r in trials.items() if r.state == PRUNED]
    finished = [n for n, r in trials.items() if r.state == COMPLETE and n != "00000"]
    assert stopped
    assert finished
    names = ["0", str(int(stopped[0])), str(int(finished[0])), "control:none", "control:kd", "champion:4", "kd:4"]
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*")}
    for name in names:
        code, output = program.run(["replay", "s", name], folder)
        assert code == 0, output
        assert "came out the same again, bit for bit" in output.splitlines()[-1]
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*")} == before
    code, output = program.run(["replay", "s", "0", "--keep"], folder)
    assert code == 0, output
    verified(study)


def test_more_trials_twice_with_a_kill_between(study: Path) -> None:
    folder = study.parents[1]
    before, winner = program.read(study / "result.json"), None
    kept = {n: (study / "finals" / n / "run.json").read_text() for n in runs(study, "finals")}
    process = program.start(["search", "--resume", "s", "--add-trials", "3"], folder)
    try:
        epochs_of(process, study / "trials" / "00007", 1)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        program.kill_group(process)
    code, output = program.run(["search", "--resume", "s"], folder, timeout=1800)
    assert code == 0, output
    result = program.read(study / "result.json")
    assert sum(result["trials"].values()) == len(runs(study, "trials")) == 9
    assert result["earlier"] == [
        {"trials": 6, "best_trial": before["best_trial"]["number"], "test": before["champion"]["test"]["mean"]}
    ]
    # Controls have the same configuration and seeds whoever wins; so has the champion, if it is the same trial.
    for name, text in kept.items():
        winner = result["best_trial"]["number"] != before["best_trial"]["number"]
        moved = study / "finals-1" / name
        if winner and name.startswith("champion"):
            assert Run.read(moved)
            assert "is another winner than before" in output
        else:
            assert (study / "finals" / name / "run.json").read_text() == text
            assert not moved.exists()
    verified(study)
    code, output = program.run(["search", "--resume", "s", "--add-trials", "1"], folder, timeout=1800)
    assert code == 0, output
    assert "1 trial is added: 10 in all" in output
    assert len(runs(study, "trials")) == 10
    assert len(program.read(study / "result.json")["earlier"]) == 2
    verified(study)
    code, output = program.run(["search", "--resume", "s"], folder)
    assert code == 0, output
    assert "it was finished already: nothing is trained again" in output
    for name in ("7", "9"):
        code, output = program.run(["replay", "s", name], folder)
        assert code == 0, output


def test_another_search_starts_from_it(study: Path) -> None:
    folder = study.parents[1]
    best = program.read(study / "result.json")["best_trial"]
    arguments = ["search", "small.yaml", "--name", "next", "--concurrent", "1", "--trials", "4", "--epochs", "2"]
    arguments += ["--champion-seeds", "1", "--student", "wrn_16_1", "--warm-start", "s:2"]
    code, output = program.run([*arguments, "--dry-run"], folder)
    assert code == 0, output
    assert "2 of 2 configurations of s fit, tried first" in output
    code, output = program.run(arguments, folder, timeout=1800)
    assert code == 0, output
    assert "2 of 2 configurations of s fit, tried first" in output
    new = folder / "runs" / "next"
    first = runs(new, "trials")["00000"]
    assert first.parameters == pytest.approx(best["parameters"])
    assert first.tags["warm_start"] == f"s trial {best['number']}"
    result = program.read(new / "result.json")
    assert result["warm_start"] == {"s": 2}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{new.parent}/mlflow.db")
    logged = client.get_run(next(iter(program.read(new / "trials/00000/mlflow.json").values()))["run_id"])
    assert logged.data.tags["akd.warm_start"] == first.tags["warm_start"]
    parent = client.get_run(result["mlflow"]["run_id"])
    assert parent.data.tags["akd.warm_start"] == "2 of s"
    verified(new)


def test_a_trial_on_two_workers(tmp_path: Path) -> None:
    arguments = ["search", "small.yaml", "--name", "w", "--workers-per-trial", "2", "--trials", "1", "--epochs", "2"]
    code, output = program.run([*arguments, "--champion-seeds", "1"], tmp_path, timeout=1800)
    assert code == 0, output
    code, output = program.run(["replay", "w", "0"], tmp_path, timeout=1500)
    assert code == 0, output
    assert "bit for bit: 2 epochs and the student's weights" in output
