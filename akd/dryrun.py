"""``--dry-run``: what a search would do and about how long it would take. Starts nothing, writes nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.syntax import Syntax

from akd import architectures, objectives
from akd.budget import allows
from akd.cluster import machine
from akd.config import Experiment
from akd.data import TrainData
from akd.data.policies import create_policy
from akd.errors import many
from akd.fit import fit
from akd.grid import count
from akd.objectives import directions
from akd.pairs import grid_words
from akd.places import everything, share
from akd.prepare import Prepared
from akd.rungs import expected_epochs, stages
from akd.sharing import sharing
from akd.teacher import LiveTeacher
from akd.teacher.keep import as_experiment, build, find
from akd.teacher.served import live_because
from akd.terminal import show_value

_STEPS = 6
#: Seconds in which a group of Ray Train workers starts on a machine of two cores. Steps are timed on one worker: how
#: much faster several are is not known before they run.
GROUP_S = 12


#: Of 16 configurations of plain distillation, tests/benchmarks/fidelity.py.
FIDELITY = (
    "how rungs rank: correlation of their scores with full training, measured on digits with train.schedule restarts "
    "and train.ema auto: 0.72 (95 % interval 0.44 to 0.87) at a ninth of the epochs, 0.62 (0.23 to 0.86) at a third"
)


def step_seconds(experiment: Experiment, data: TrainData) -> float:
    """Seconds of one step of a student here, live teacher included, from a few steps with untrained networks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = experiment.train.batch_size
    few = replace(data, train=data.train[: batch * min(_STEPS, len(data.train) // batch)], val=data.val[:0])
    source, train = None, replace(experiment.train, epochs=4, epoch_factor=1)
    if experiment.needs_teacher:
        short = replace(as_experiment(experiment), train=replace(train, epochs=1))
        first = replace(few, train=few.train[:batch])
        source = LiveTeacher(fit(short, first, None, device=device).student, experiment.method.needs)
    seconds: list[float] = []
    # The first epoch warms up; the fastest of the others counts, because other programs only ever slow it down.
    timed = replace(experiment, train=train, method=experiment.method.without_warmup())
    fit(timed, few, source, device=device, report=lambda r: seconds.append(r.metrics["time/epoch_s"]))
    return min(seconds[1:]) / (len(few.train) // batch)


@torch.no_grad()
def teacher_seconds(experiment: Experiment, data: TrainData) -> float:
    """Seconds of the teacher on one view of a step's images: what a step takes less whose outputs are kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = build(replace(experiment, teacher=replace(experiment.teacher, weights=None)), data).to(device)
    images = torch.zeros(experiment.train.batch_size, data.dataset.channels, *data.dataset.size, device=device)
    seconds = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            net(images)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def show(ready: Prepared, console: Console, output: Path) -> None:
    """Print the resolved experiment, the first three configurations and the time it would take.

    Args:
        output: where a search would look for a teacher that is kept.
    """
    import optuna

    from akd.samplers import make_sampler

    experiment, search = ready.experiment, ready.experiment.search
    console.print(Syntax(experiment.to_yaml().rstrip(), "yaml", background_color="default"))
    ready = architectures.clocked(ready)
    console.print("\nthe first three configurations:")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=directions(search.objectives))
    few = min(3, search.trials, count(ready.space) if search.sampler == "grid" else 3)
    for number in range(few):
        study.sampler = make_sampler(experiment, number, ready.space)
        values = ready.space(study.ask())
        console.print(
            f"  trial {number}: " + ", ".join(f"{k} {show_value(v)}" for k, v in values.items()), soft_wrap=True
        )
    _costs(ready, console)
    console.print("\ntiming a few steps ...")
    data = ready.data
    factor = experiment.train.epoch_factor
    steps = len(data.train) // experiment.train.batch_size * factor
    own = as_experiment(experiment)
    trial, alone = step_seconds(experiment, data), step_seconds(ready.controls["none"], data)
    kept = ready.wants_teacher and find(experiment, data, output / "teachers") is not None
    teacher = 0.0
    if ready.wants_teacher and not kept and not experiment.teacher.weights:
        passes = own.train.epochs * own.train.epoch_factor
        teacher = step_seconds(own, data) * (len(data.train) // own.train.batch_size) * passes
    epochs = experiment.train.epochs
    shared = sharing(ready)
    forward = teacher_seconds(experiment, data) if live_because(experiment) is None and shared.keep else 0.0
    filling = forward * steps * epochs * shared.keys
    policy = create_policy(experiment.method.augment, data)
    trial = max(alone, trial - forward * (policy.views if policy else 1))
    mean = expected_epochs(search, epochs)
    here = [machine()]
    resources = share(search, here)
    concurrent = resources.concurrent
    start = GROUP_S * (resources.workers > 1)
    # A head epoch runs the teacher and the heads, but no student.
    heads = experiment.method.warmup_epochs * max(0.0, trial - alone)
    training = steps * ((trial * mean + heads) * search.trials + (trial + alone) * epochs) + filling
    searching = (training + start * (search.trials + 2)) / concurrent
    final_steps = (len(data.train) + len(data.val)) // experiment.train.batch_size * factor
    final = (search.champion_seeds or 1) * final_steps * (epochs * (2 * trial + alone) + heads)
    again = min(search.confirm, search.trials) * (search.confirm_seeds or 1) if search.confirm > 1 else 0
    confirming = again * (steps * trial * epochs + heads + start) / concurrent
    parts = {
        "teacher (kept from before)" if kept else "teacher": teacher
        + (GROUP_S if teacher and everything(search, here, own.train.batch_size).size > 1 else 0),
        "search": searching,
        **({"confirmation at most": confirming} if confirming else {}),
        "final runs": final + (GROUP_S if everything(search, here, experiment.train.batch_size).size > 1 else 0),
    }
    each = f" on {resources.workers} workers" if resources.workers > 1 else ""
    console.print(
        f"\n{many(search.trials, 'trial')} of at most {many(epochs, 'epoch')} "
        f"({mean:.1f} on average with {search.scheduler}), {concurrent} at a time{each}, "
        f"and 2 controls; a step takes {1000 * trial:.1f} ms here",
        soft_wrap=True,
    )
    console.print("estimated time: " + ", ".join(f"{k} {duration(v)}" for k, v in parts.items()), soft_wrap=True)
    fixed = teacher + steps * (trial + alone) * epochs + again * (steps * trial * epochs + heads) + final
    first = steps * trial * stages(search, epochs)[0]
    words = [grid_words(experiment, ready.space), allows(search, fixed, steps * (trial * mean + heads), first)]
    for line in [*shared.words(), *filter(None, words)]:
        console.print(line, soft_wrap=True)
    if search.scheduler == "asha":
        console.print(FIDELITY, soft_wrap=True)
    console.print("nothing was started, nothing was written")


def _costs(ready: Prepared, console: Console) -> None:
    """What the search is asked for, and what each student costs; latencies as measured here."""
    search = ready.experiment.search
    console.print(f"\nobjectives: {', '.join(search.objectives)}")
    bounded = search.constraints.given() if search.constraints else {}
    for name, most in bounded.items():
        console.print(f"at most: {objectives.COSTS[name].shown(most)} {objectives.COSTS[name].words}")
    for line in architectures.words(ready, always=True):
        console.print(line, soft_wrap=True)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
