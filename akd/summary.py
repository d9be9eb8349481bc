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

from akd import confirm, front, warm
from akd import folder as run_folder
from akd.budget import account, account_words
from akd.config import Experiment
from akd.errors import many
from akd.folder import COMPLETE, Run
from akd.job import kept_keys
from akd.methods import soft_weight
from akd.mirror import Mirror
from akd.prepare import Prepared
from akd.result import CONTROL_WORDS, StudyResult, earlier_results, paired_gain, scores
from akd.storage import Storage
from akd.teacher.cache import size_of
from akd.teacher.keep import Teacher
from akd.terminal import percent, short_names, show_value


def runs(study: Path, part: str) -> list[Run]:
    """The runs under ``study/part``, by folder name."""
    return [r for p in sorted(study.glob(f"{part}/*/run.json")) if (r := Run.read(p.parent))]


def lent(folder: Path) -> bool:
    """True if a run was trained in another study of a comparison, and copied."""
    run = Run.read(folder)
    return run is not None and "lent_by" in run.tags


def costs(study: Path, teacher: Teacher | None) -> tuple[float, int, int]:
    """What a whole study took: seconds of training (of a teacher it trained itself, too), and of the teacher in it.

    Returns:
        Seconds, images whose outputs were asked for, images the teacher was run on.
    """
    seconds, asked, made = 0.0, 0, 0
    for path in study.glob("*/*/run.json"):
        if lent(path.parent):  # another study paid for it
            continue
        entries = [*run_folder.head_history(path.parent), *run_folder.history(path.parent)]
        seconds += sum(e["time/epoch_s"] * e.get("time/devices", 1) for e in entries)
        asked += sum(round(e.get("time/teacher_asked", 0)) for e in entries)
        made += sum(round(e.get("time/teacher_images", 0)) for e in entries)
    own = Run.read(study)
    if teacher is not None and own is not None and "teacher_trained" in own.tags:
        seconds += sum(e["time/epoch_s"] * e.get("time/devices", 1) for e in run_folder.history(teacher.folder))
    return seconds, asked, made


def teacher_passes(study: Path, asked: int, made: int, storage: Storage | None = None) -> dict[str, int]:
    """What the cache did for a study: see :class:`akd.result.StudyResult`.

    Args:
        storage: that nodes share.
    """
    noted = [n for path in study.glob("*/*/run.json") if (n := kept_keys(path.parent))]
    keys = {(n["folder"], key) for n in noted for key in n["keys"]}
    if storage is not None:  # each node has what it read, the storage has all of it
        keys = {("cache", key) for _, key in keys}
        size = sum(sum(storage.names(f"cache/{key}").values()) for _, key in keys)
    else:
        size = sum(size_of(Path(folder) / key) for folder, key in keys)
    return {"made": made, "saved": max(0, asked - made), "bytes": size, "keys": len(keys)}


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
    mirror: Mirror,
    confirmation: dict[str, Any] | None = None,
) -> StudyResult:
    """The result of a study whose final runs are done.

    Args:
        best: winning trial, its validation accuracy, its epochs.
        tested: ``champion`` and controls -> seed -> test accuracy.
        handed: folder of the champion's student.
        seconds: wall-clock time of all sessions.
        start_costs: pauses between trials of one worker, seconds.
        mirror: what nodes share.
        confirmation: how the winner was named, see :func:`akd.confirm.summary`.
    """
    experiment: Experiment = ready.experiment
    run, accuracy, epochs = best
    winner = experiment.with_values(run.parameters)
    trained, asked, made = costs(study, teacher)
    pauses = sorted(start_costs)
    return StudyResult(
        study=study.name,
        folder=str(study),
        data=experiment.data.name,
        teacher=experiment.teacher.name,
        student=winner.student.name,
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
        gain={name: paired_gain(tested["champion"], tested[name], len(ready.controls)) for name in ready.controls},
        effective_soft_target_weight=(
            None if winner.method.normalise else soft_weight(winner.method, len(ready.data.dataset.classes))
        ),
        trials=dict(Counter(r.state for r in runs(study, "trials"))),
        mlflow={},
        wall_clock_s=seconds,
        device_hours=trained / 3600,
        teacher_passes=teacher_passes(study, asked, made, mirror.storage),
        start_cost_s={"median": pauses[len(pauses) // 2], "largest": pauses[-1]} if pauses else {},
        budget=account(experiment.search, trained / 3600, seconds),
        front=front.members(study),
        costs=ready.costs,
        left_out=ready.left_out,
        confirmation=confirmation or {},
        warm_start=dict(warm.read(study).counts),
        earlier=earlier_results(study),
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
    sure = " (95 % interval)" if any(g.low is not None for g in result.gain.values()) else ""
    lines = [
        f"trial {best['number']}: {values}",
        f"validation {percent(best['validation_accuracy'])} % after {many(best['epochs_run'], 'epoch')}",
        *confirm.lines(result.confirmation),
        "",
        f"test accuracy, {n} final run{'s' * (n > 1)} each     {f'gain of the winner{sure}':>40}",
        f"  {'winner':<14} {plus_minus(test)}",
    ]
    for name, gain in result.gain.items():
        control = plus_minus(result.controls[name]["test"])
        interval = gain.interval() or (" (the same in every seed)" if n > 1 else "")
        lines.append(f"  {CONTROL_WORDS[name]:<14} {control:<20} {gain.mean:>+12.2f} points{interval}")
    for e in result.earlier:
        lines.append(f"  after {many(e['trials'], 'trial')} trial {e['best_trial']} had won: {percent(e['test'])} %")
    lines += ["", *front_lines(result)] if result.front else []
    lines += [
        "",
        verdict(result),
        "",
        f"student   {shown_path(Path(result.champion['student']))}/student.safetensors",
        f"study     {shown_path(Path(result.folder))} (result.json, trials, finals)",
    ]
    if (page := Path(result.folder) / "report.html").is_file():
        lines.append(f"report    {shown_path(page)}")
    size = result.mlflow.get("checkpoint_bytes")
    logged = f"   ({size / 1e6:.1f} MB of students logged)" if size is not None else ""
    lines.append(f"MLflow    {ui_command}{logged}")
    if registered := result.mlflow.get("registered"):
        lines.append(f"model     {registered}")
    if result.start_cost_s:
        pause = result.start_cost_s
        lines.append(
            f"start     {pause['median']:.2f} s between two trials of a worker, {pause['largest']:.2f} at most"
        )
    if result.teacher_passes.get("keys"):
        lines.append(f"teacher   {teacher_words(result.teacher_passes)}")
    lines.append(f"time      {result.wall_clock_s:.0f} s; {result.device_hours * 60:.1f} device-minutes of training")
    if (words := account_words(result.budget)) is not None:
        lines.append(f"budget    {words}")
    return lines


def front_lines(result: StudyResult, most: int = 8) -> list[str]:
    """The front in a few lines; of a long one the most accurate trials."""
    count, finished = len(result.front), result.trials.get(COMPLETE, 0)
    *names, last = result.front[0]["values"]
    head = f"front of {', '.join(names)} and {last}: {many(count, 'trial')} of {finished} finished"
    rest = [f"  and {count - most} more, see result.json"] if count > most else []
    found = front.lines(result.front[:most], result.best_trial["number"])
    first = result.front[0]["number"] == result.best_trial["number"]
    return [f"{head}{'; the winner is the most accurate' * first}", *found, *rest]


def teacher_words(passes: Mapping[str, int]) -> str:
    """``run on 17,244 images, 40,100 found in the cache (0.6 MB, 2 keys)``."""
    keys = passes["keys"]
    kept = f"{passes['bytes'] / 1e6:.1f} MB, {keys} key{'s' * (keys > 1)}"
    return f"run on {passes['made']:,} images instead of {passes['made'] + passes['saved']:,} ({kept})"


def verdict(result: StudyResult) -> str:
    """In words: which controls the winner is shown to beat, and which beat it."""
    words = {name: CONTROL_WORDS[name] for name in result.gain}
    beaten = [words[n] for n, g in result.gain.items() if g.low is not None and g.low > 0]
    better = [words[n] for n, g in result.gain.items() if g.high is not None and g.high < 0]
    open_ = [w for w in words.values() if w not in beaten + better]
    parts = [f"beats {' and '.join(beaten)} beyond noise"] if beaten else []
    parts += [f"is beaten by {' and '.join(better)} beyond noise"] if better else []
    parts += [f"is not shown to beat {' or '.join(open_)}"] if open_ else []
    more = ""
    if open_:
        lone = all(g.low is None for g in result.gain.values()) and len(result.champion["test"]["accuracy"]) < 2
        more = ": one seed gives no interval" if lone else ": more seeds, epochs or trials would tell"
    return f"The winner {', '.join(parts[:-1])}{', and ' if len(parts) > 1 else ''}{parts[-1]}{more}."


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
