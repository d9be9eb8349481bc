"""Comparing studies: what must agree after any interruption."""

from __future__ import annotations

from pathlib import Path

import program
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from akd import folder as run_folder
from akd.searcher import open_study

# One trial at a time: then the whole sequence of an interrupted search equals the undisturbed one.
ONE = ["search", "small.yaml", "--name", "s", "--concurrent", "1", "--trials", "5", "--epochs", "4"]
ONE += ["--champion-seeds", "1", "--seed", "3", "--confirm", "2"]


def students(study: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(p.parent.relative_to(study)): load_file(p) for p in sorted(study.glob("*/*/student/student.safetensors"))
    }


def agree(study: Path) -> None:
    """Optuna, folders and MLflow tell the same of every run, and MLflow has none twice."""
    told = open_study(study / "optuna.log", study.name)
    client = MlflowClient(f"sqlite:///{study.parent}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    marks = [r.data.tags["akd.mark"] for r in runs]
    assert len(marks) == len(set(marks))
    by_id = {r.info.run_id: r for r in runs}
    folders = [p.parent for p in study.glob("*/*/run.json")]
    assert len(runs) == len(folders) + 2  # the parent and the teacher
    for folder in folders:
        run, entries = run_folder.Run.read(folder), run_folder.history(folder)
        assert run is not None
        logged = by_id[next(iter(program.read(folder / "mlflow.json").values()))["run_id"]]
        assert logged.data.tags["akd.status"] == run.state
        assert logged.info.status == "FINISHED"
        curve = client.get_metric_history(logged.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in curve] == [(e["epoch"], e["train/loss"]) for e in entries]
        if run.number is not None:
            trial = told.trials[run.number]
            assert trial.state.name == run.state
            assert trial.intermediate_values == {int(e["epoch"]): e["val/accuracy"] for e in entries}
    assert client.get_run(program.read(study / "result.json")["mlflow"]["run_id"]).info.status == "FINISHED"


def identical(mine: Path, theirs: Path) -> None:
    """Two studies have the same epochs, weights and results, bit for bit."""
    assert program.epochs_of(mine) == program.epochs_of(theirs)
    a, b = students(mine), students(theirs)
    assert a.keys() == b.keys()
    for name, tensors in a.items():
        assert all(torch.equal(tensors[k], b[name][k]) for k in tensors), name
    told, expected = (program.read(s / "result.json") for s in (mine, theirs))
    for key in ("best_trial", "controls", "gain", "trials", "teacher_accuracy", "confirmation"):
        assert told[key] == expected[key]
    # What a killed epoch had the teacher run on is found by the next: the same outputs, made in another epoch.
    asked, wanted = (sum(r["teacher_passes"][k] for k in ("made", "saved")) for r in (told, expected))
    assert asked == wanted
    for key in ("bytes", "keys"):
        assert told["teacher_passes"][key] == expected["teacher_passes"][key]
