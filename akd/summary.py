"""From a study's folders to its result, and from the result to the closing words on the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from akd import config as configuration
from akd import folder as run_folder
from akd.config import Experiment
from akd.errors import many
from akd.folder import Run
from akd.methods import soft_weight
from akd.prepare import Prepared
from akd.result import StudyResult, paired_gain, scores
from akd.teacher.keep import Teacher
from akd.terminal import percent, short_names, show_value

#: Controls in words.
CONTROL_WORDS = {"none": "student alone", "kd": "plain KD"}


def runs(study: Path, part: str) -> list[Run]:
    """The runs under ``study/part``, by folder name."""
    return [r for p in sorted(study.glob(f"{part}/*/run.json")) if (r := Run.read(p.parent))]


def costs(study: Path, teacher: Teacher | None) -> tuple[float, int]:
    """Seconds of training, and images the teacher was run on, of a whole study (with a teacher it trained itself)."""
    seconds, passes = 0.0, 0
    for path in study.glob("*/*/run.json"):
        entries = [*run_folder.head_history(path.parent), *run_folder.history(path.parent)]
        seconds += sum(e["time/epoch_s"] * e.get("time/devices", 1) for e in entries)
        if configuration.load(path.parent / "experiment.yaml", {}, strict=False).needs_teacher:
            passes += sum(round(e["time/epoch_s"] * e["time/images_per_s"]) for e in entries)
    own = Run.read(study)
    if teacher is not None and own is not None and "teacher_trained" in own.tags:
        seconds += sum(e["time/epoch_s"] * e.get("time/devices", 1) for e in run_folder.history(teacher.folder))
    return seconds, passes


def make_result(
    study: Path,
    ready: Prepared,
    teacher: Teacher | None,
    best: tuple[Run, float, int],
    tested: Mapping[str, dict[int, float]],
    handed: Path,
    *,
    seconds: float,
    start_costs: list[float],
) -> StudyResult:
    """The result of a study whose final runs are done.

    Args:
        best: winning trial, its validation accuracy, its epochs.
        tested: ``champion`` and controls -> seed -> test accuracy.
        handed: folder of the champion's student.
        seconds: wall-clock time of all sessions.
        start_costs: pauses between trials of one worker, seconds.
    """
    experiment: Experiment = ready.experiment
    run, accuracy, epochs = best
    winner = experiment.with_values(run.parameters)
    trained, passes = costs(study, teacher)
    pauses = sorted(start_costs)
    return StudyResult(
        study=study.name,
        folder=str(study),
        data=experiment.data.name,
        teacher=experiment.teacher.name,
        student=experiment.student.name,
        teacher_accuracy=teacher.accuracy if teacher else None,
        controls={
            name: {
                "validation_accuracy": run_folder.accuracy(study / "controls" / name),
                "test": asdict(scores(tested[name])),
            }
            for name in ready.controls
        },
        best_trial={
            "number": run.number,
            "id": run.name,
            "parameters": run.parameters,
            "validation_accuracy": accuracy,
            "epochs_run": epochs,
        },
        champion={"test": asdict(scores(tested["champion"])), "student": str(handed)},
        gain={name: paired_gain(tested["champion"], tested[name]) for name in ready.controls},
        effective_soft_target_weight=(
            None if winner.method.normalise else soft_weight(winner.method, len(ready.data.dataset.classes))
        ),
        trials=dict(Counter(r.state for r in runs(study, "trials"))),
        mlflow={},
        wall_clock_s=seconds,
        device_hours=trained / 3600,
        teacher_passes={"made": passes, "saved": 0},
        start_cost_s={"median": pauses[len(pauses) // 2], "largest": pauses[-1]} if pauses else {},
    )


def closing_title(experiment: Experiment, result: StudyResult) -> str:
    """What won, in words: the space may have chosen the method itself."""
    winner = experiment.with_values(result.best_trial["parameters"])
    return f"winner: {winner.method.title}, {winner.student.name}"


def closing_lines(result: StudyResult, ui_command: str) -> list[str]:
    """The closing box of a search.

    Args:
        ui_command: what opens MLflow at this study.
    """
    best, test = result.best_trial, result.champion["test"]
    names = short_names(list(best["parameters"]))
    values = ", ".join(f"{names[k]} {show_value(v)}" for k, v in best["parameters"].items())
    n = len(test["accuracy"])
    lines = [
        f"trial {best['number']}: {values}",
        f"validation {percent(best['validation_accuracy'])} % after {many(best['epochs_run'], 'epoch')}",
        "",
        f"test accuracy, {n} final run{'s' * (n > 1)} each     {'gain of the winner (95 % interval)':>40}",
        f"  {'winner':<14} {plus_minus(test)}",
    ]
    for name, gain in result.gain.items():
        interval = ""
        if gain.low is not None and gain.high is not None:
            noise = ", within noise" if gain.low <= 0 <= gain.high else ""
            interval = f" ({gain.low:+.2f} to {gain.high:+.2f}{noise})"
        control = plus_minus(result.controls[name]["test"])
        lines.append(f"  {CONTROL_WORDS[name]:<14} {control:<20} {gain.mean:>+12.2f} points{interval}")
    lines += [
        "",
        verdict(result),
        "",
        f"student   {shown_path(Path(result.champion['student']))}/student.safetensors",
        f"study     {shown_path(Path(result.folder))} (result.json, trials, finals)",
    ]
    size = result.mlflow.get("checkpoint_bytes")
    logged = f"   ({size / 1e6:.1f} MB of students logged)" if size is not None else ""
    lines.append(f"MLflow    {ui_command}{logged}")
    if result.start_cost_s:
        pause = result.start_cost_s
        lines.append(
            f"start     {pause['median']:.2f} s between two trials of a worker, {pause['largest']:.2f} at most"
        )
    lines.append(f"time      {result.wall_clock_s:.0f} s; {result.device_hours * 60:.1f} device-minutes of training")
    return lines


def verdict(result: StudyResult) -> str:
    """In words: which controls the winner is shown to beat."""
    beaten = [CONTROL_WORDS[n] for n, g in result.gain.items() if g.low is not None and g.low > 0]
    open_ = [CONTROL_WORDS[n] for n, g in result.gain.items() if CONTROL_WORDS[n] not in beaten]
    if not open_:
        return f"The winner beats {' and '.join(beaten)} beyond noise."
    start = f"The winner beats {beaten[0]} beyond noise, but is" if beaten else "The winner is"
    return f"{start} not shown to beat {' or '.join(open_)}: more seeds, epochs or trials would tell."


def program() -> str:
    """How the user calls this program: ``akd``, or its path when the shell would not find this one."""
    me = Path(sys.argv[0]).absolute()
    if me.name != "akd" or shutil.which("akd") == str(me):
        return "akd"
    return shown_path(me)


def plus_minus(test: Mapping[str, Any]) -> str:
    """``97.50 ± 0.39 %``."""
    spread = f" ± {100 * test['std']:.2f}" if test["std"] is not None else ""
    return f"{100 * test['mean']:.2f}{spread} %"


def shown_path(path: Path) -> str:
    """A path as seen from here, if it is below here."""
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)
