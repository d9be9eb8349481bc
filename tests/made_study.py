"""A finished study as a search leaves it in its folder, written without training: numbers are drawn, not measured."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna

from akd import costs, front
from akd import folder as run_folder
from akd.architectures import of_study
from akd.champion import final_seeds
from akd.config import Experiment, resolve
from akd.folder import COMPLETE, FAILED, PRUNED, Run
from akd.objectives import as_results, figures_of, values_of
from akd.result import StudyResult, paired_gain, scores
from akd.searcher import open_study, ranking
from akd.space import Space, parse

EPOCHS = 9
SPACE: dict[str, Any] = {
    "method.host.weight": {"type": "float", "low": 0.5, "high": 8.0, "log": True},
    "train.lr": {"type": "float", "low": 0.01, "high": 0.3, "log": True},
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.decay_epochs": {"choices": [[3, 6], [6, 8]], "when": {"train.schedule": ["step"]}},
}
KD: dict[str, Any] = {
    "data": {"name": "digits", "subset": 300},
    "teacher": "wrn_16_1",
    "student": "resnet8",
    "train": {"epochs": EPOCHS},
    "search": {"trials": 8, "champion_seeds": 3, "grace": 3},
    "space": SPACE,
}
VIEWS = KD | {
    "method": {"host": "kd", "views": {"name": "angular_kd", "count": 3, "head_warmup_epochs": 2}},
    "space": {
        "method.views.count": {"type": "int", "low": 1, "high": 6},
        "method.views.margin": {"type": "float", "low": 0.05, "high": 0.5},
        "train.lr": {"type": "float", "low": 0.01, "high": 0.3, "log": True},
    },
}
COSTS = {
    "resnet8": {"parameters": 77754.0, "flops": 1527040.0, "latency_1": 0.31},
    "resnet14": {"parameters": 174970.0, "flops": 3296512.0, "latency_1": 0.62},
    "wrn_40_2": {"parameters": 2243258.0, "flops": 40915456.0},
}
FRONT = KD | {
    "search": KD["search"] | {"objectives": ["accuracy", "parameters"], "constraints": {"parameters": "1 M"}},
    "space": SPACE | {"student.name": {"choices": ["resnet8", "resnet14", "wrn_40_2"]}},
}


def make(folder: Path, tree: dict[str, Any] = KD, trials: int = 8, *, ended: bool = True) -> Path:
    """Write a study into ``folder``: controls, trials, final runs and result; without the last two if not ``ended``."""
    experiment, draw = resolve(tree), random.Random(7)
    began = 1_790_000_000.0
    tags = {"tracking": "sqlite:////nowhere/mlflow.db", "teacher_hash": "0123456789abcdef"}
    own = Run("study", folder.name, started=began, tags=tags)
    run_folder.create(folder, experiment, own)
    for name in ("none", "kd"):
        run = Run("control", f"control {name}", started=began)
        _put(folder / "controls" / name, experiment, run, COMPLETE, 0.9, EPOCHS, draw)
    objectives = experiment.search.objectives
    told, space = open_study(folder / "optuna.log", folder.name, objectives), parse(experiment)
    if len(objectives) > 1:
        costs.keep(folder, COSTS)
        space, _, _ = of_study(folder, space, experiment)
    for number in range(trials):
        state = FAILED if number == 6 else PRUNED if number % 3 == 2 else COMPLETE
        _trial(folder, experiment, told, space, number, state, draw)
    if ended:
        _end(folder, experiment, own, draw)
    return folder


def _trial(
    folder: Path, experiment: Experiment, told: optuna.Study, space: Space, number: int, state: str, draw: random.Random
) -> None:
    sampler = optuna.samplers.RandomSampler(seed=number)
    told.sampler = sampler
    trial = told.ask()
    values = space(trial)
    run = Run("trial", f"trial {number}", number=number, parameters=values, started=1_790_000_010.0 + 20 * number)
    path = folder / "trials" / f"{number:05d}"
    epochs = {COMPLETE: EPOCHS, PRUNED: 3, FAILED: 1}[state]
    best = 0.95 - 0.1 * abs(values["train.lr"] - 0.1)
    objectives, student = experiment.search.objectives, values.get("student.name", "")
    if len(objectives) > 1:
        run.results = as_results(COSTS[student])
        best -= 0.05 * (student == "resnet8")
    entries = _put(path, experiment.with_values(values), run, state, best, epochs, draw)
    for entry in entries:
        told._storage.set_trial_intermediate_value(trial._trial_id, int(entry["epoch"]), entry["val/accuracy"])
    states = {COMPLETE: "COMPLETE", PRUNED: "PRUNED", FAILED: "FAIL"}
    told_values = (
        values_of(objectives, entries[-1]["val/accuracy"], figures_of(run.results)) if state == COMPLETE else None
    )
    told.tell(number, told_values, state=optuna.trial.TrialState[states[state]])


def _put(
    path: Path, experiment: Experiment, run: Run, state: str, best: float, epochs: int, draw: random.Random
) -> list[dict[str, float]]:
    """A run's folder with its epochs."""
    run_folder.create(path, experiment, run)
    views, entries = experiment.method.views_name is not None and run.kind == "trial", []
    for epoch in range(1, epochs + 1):
        entry = {"epoch": epoch, "at": run.started + epoch, "train/loss": 1 / epoch, "time/epoch_s": 1.5}
        entry |= {"time/devices": 1.0, "time/teacher_asked": 256.0, "time/teacher_images": 256.0 * (run.number == 0)}
        entry |= {"val/accuracy": best * (1 - 0.5**epoch) + draw.uniform(-0.01, 0.01)} if run.kind != "final" else {}
        entry |= _of_views(epoch, draw) if views else {}
        entries.append(entry)
    lines = "".join(json.dumps(e) + "\n" for e in entries)
    (path / "history.jsonl").write_text(lines, encoding="utf-8")
    if views:
        heads = [{"head_epoch": e, "at": run.started, "time/epoch_s": 0.5, **_of_views(0, draw)} for e in (1, 2)]
        (path / "heads.jsonl").write_text("".join(json.dumps(e) + "\n" for e in heads), encoding="utf-8")
    reason = "the loss is not finite" if state == FAILED else None
    run.rung = {COMPLETE: 9, PRUNED: 3}.get(state)
    run.end(path, state, reason, **({"test/accuracy": best} if run.kind == "final" else {}))
    run.ended = run.started + epochs * 1.5
    run.write(path)
    return entries


def _of_views(epoch: int, draw: random.Random) -> dict[str, float]:
    return {
        "views/angle_to_teacher": 60 - epoch + draw.uniform(0, 20),
        "views/angle_between": 70 + draw.uniform(0, 15),
        "views/inside": 0.1 * epoch + draw.uniform(0, 0.1),
        "views/diversity": draw.uniform(0.01, 0.1),
        "views/ensemble_accuracy": 0.9,
    }


def _end(folder: Path, experiment: Experiment, own: Run, draw: random.Random) -> None:
    run, accuracy, epochs = ranking(folder)[0]
    tested: dict[str, dict[int, float]] = {}
    for name, level in (("champion", 0.94), ("none", 0.90), ("kd", 0.935)):
        for seed in final_seeds(experiment):
            final = Run("final", f"{name} seed {seed}", started=own.started + 300)
            best = round(level + draw.uniform(-0.01, 0.01), 4)
            _put(folder / "finals" / f"{name}-seed{seed}", experiment, final, COMPLETE, best, EPOCHS, draw)
            tested.setdefault(name, {})[seed] = best
    student = folder / "champion"
    student.mkdir()
    (student / "student.safetensors").write_bytes(b"weights")
    states = [r.state for p in (folder / "trials").glob("*/run.json") if (r := Run.read(p.parent))]
    result = StudyResult(
        study=folder.name,
        folder=str(folder),
        data="digits",
        teacher="wrn_16_1",
        student=run.parameters.get("student.name", "resnet8"),
        teacher_accuracy=0.99,
        controls={
            name: {
                "validation_accuracy": run_folder.accuracy(folder / "controls" / name),
                "test": asdict(scores(tested[name])),
            }
            for name in ("none", "kd")
        },
        best_trial={"number": run.number, "id": run.name, "parameters": run.parameters}
        | {"validation_accuracy": accuracy, "epochs_run": epochs},
        champion={"test": asdict(scores(tested["champion"])), "student": str(student)},
        gain={name: paired_gain(tested["champion"], tested[name]) for name in ("none", "kd")},
        effective_soft_target_weight=14.4,
        trials={state: states.count(state) for state in set(states)},
        mlflow={},
        wall_clock_s=400.0,
        device_hours=0.1,
        teacher_passes={"made": 2304, "saved": 9000, "bytes": 50_000, "keys": 1},
        front=front.members(folder),
    )
    result.write(folder)
    own.end(folder, COMPLETE, None, **{"best/val_accuracy": accuracy})
