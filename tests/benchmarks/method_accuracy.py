"""Does every method work once it is tuned? Validation accuracy on digits, all at equal budget.

    .venv/bin/python tests/benchmarks/method_accuracy.py [--trials 20] [--epochs 16] [--seeds 3] [--processes 2]
                                                         [--methods NAME ...]

A row for the student alone, for every host over the plain teacher, and for every kind of views and every augmentation
(as a second view) over plain distillation. Each is searched in its own shipped space, with the sampler a search has:
``--trials`` configurations of ``--epochs`` epochs from one seed. The best of them is trained again from ``--seeds``
other seeds, which is what to read. Images, split, teacher, student, epochs, trials and the range of the learning rate
are the same for all; the student alone has nothing but its learning rate to tune. The shipped spaces are written for
60 epochs: what they count in epochs is scaled to the length here. Epochs of heads, before the student's, come on top:
they are in the seconds.

Digits say that a method works and what it costs. They do not say which one is best on natural images: 300 images of
8x8 pixels are learned in seconds, and methods lie closer together than seeds. On two quiet cores the whole table takes
about 12 minutes; seconds are of the processor, the teacher's forward passes included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from akd import spaces
from akd.config import Experiment, load
from akd.data import TrainData, split
from akd.data import load as load_data
from akd.data.policies import augments
from akd.errors import DivergedError
from akd.fit import fit
from akd.methods import hosts, views
from akd.searcher import make_sampler
from akd.space import Space, parse
from akd.teacher import LiveTeacher
from akd.teacher.keep import load_teacher, obtain

#: 300 training images leave room above the student alone, 700 for validation make a step of the score small.
COMMON: dict[str, Any] = {
    "data": "digits",
    "data.subset": 1000,
    "data.validation": 0.7,
    "teacher": "wrn_16_2",
    "teacher.train.lr": 0.1,
    "teacher.train.threads": 1,
    "student": "resnet8",
    "train.batch_size": 64,
    "train.schedule": "cosine",
    "train.ema": 0.0,
    "train.threads": 1,
}
#: Higher than in the shipped spaces: a run has 64 steps.
LR = {"type": "float", "low": 0.02, "high": 0.5, "log": True}


@dataclass(frozen=True)
class Budget:
    """What every method gets."""

    trials: int
    epochs: int
    seeds: int
    teacher_epochs: int


@dataclass(frozen=True)
class Row:
    """A method tuned.

    Attributes:
        title: the method in words.
        best: highest validation accuracy (0..1) of a trial.
        again: validation accuracies of the best configuration from other seeds.
        seconds: of the processor, of one run of the best configuration, and of everything.
        diverged: trials that did.
        values: the best configuration.
    """

    title: str
    best: float
    again: list[float]
    seconds: tuple[float, float]
    diverged: int
    values: dict[str, Any]

    def __str__(self) -> str:
        found = ", ".join(f"{key.split('.')[-1]} {plain(value)}" for key, value in self.values.items())
        deviation = f"{100 * statistics.stdev(self.again):5.2f}" if len(self.again) > 1 else "    -"
        lost = f"  ({self.diverged} diverged)" if self.diverged else ""
        return (
            f"{self.title:<27} {100 * self.best:6.2f} {100 * statistics.fmean(self.again):6.2f} {deviation} "
            f"{self.seconds[0]:6.1f} {self.seconds[1]:6.0f}  {found}{lost}"
        )


HEADER = f"{'method':<27} {'best':>6} {'mean':>6} {'std':>5} {'run, s':>6} {'all, s':>6}  best configuration"


def plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)


def names() -> list[str]:
    """Every row: the student alone, hosts, views, augmentations."""
    return ["none", *(n for n in hosts.names() if n != "none"), *views.names(), *augments.names()]


def entry(name: str, budget: Budget) -> tuple[Experiment, Space, float]:
    """The experiment a row starts from, what is searched, and its length over that of the shipped space."""
    common = COMMON | {
        "teacher.train.epochs": budget.teacher_epochs,
        "train.epochs": budget.epochs,
        "search.trials": budget.trials,
        "space.train.lr": LR,
    }
    if name == "none":
        experiment = load(None, {"method": "none", **common})
        return experiment, parse(experiment), 1.0
    path = spaces.find("augmentation" if name in augments else name)
    # Longer schedules are another budget; where none is searched this says what holds anyway.
    experiment = load(path, common | {"space.train.epoch_factor": 1})
    told = {"method.augment.name": name, "method.augment.form": "second"}
    parameters = parse(experiment).parameters
    kept = [replace(p, kind="fixed", choices=(told[p.key],)) if p.key in told else p for p in parameters]
    return experiment, Space(tuple(kept)), budget.epochs / load(path, {}).train.epochs


def fitted(experiment: Experiment, scale: float) -> Experiment:
    """The experiment with the method's slow start and head epochs (of which one stays) for runs of this length."""
    method, values = experiment.method, {}
    if getattr(method.host, "ramp_epochs", 0):
        values["method.host.ramp_epochs"] = round(scale * method.host.ramp_epochs)
    if method.warmup_epochs:
        values["method.views.head_warmup_epochs"] = max(1, round(scale * method.warmup_epochs))
    return experiment.with_values(values)


def setting(experiment: Experiment, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), experiment)


def tune(name: str, budget: Budget, teacher: Path) -> Row:
    """Search a method's space and repeat its best configuration.

    Args:
        teacher: run folder of the teacher.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    experiment, space, scale = entry(name, budget)
    data, net = split(experiment.data, load_data(experiment.data)), load_teacher(teacher)
    score = partial(accuracy, experiment, scale=scale, data=data, net=net)
    study, diverged, began = optuna.create_study(direction="maximize"), 0, time.process_time()
    for number in range(budget.trials):
        study.sampler = make_sampler(experiment, number)
        trial = study.ask()
        values = space(trial)
        trial.set_user_attr("values", values)
        try:
            study.tell(trial, score(values, seed=0))
        except DivergedError:
            diverged += 1
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    best = study.best_trial.user_attrs["values"]
    middle = time.process_time()
    again = [score(best, seed=1 + k) for k in range(budget.seeds)]
    end = time.process_time()
    winner = fitted(experiment.with_values(best), scale)
    shown = {p.key: setting(winner, p.key) for p in space.searched if p.key in best}
    each = (end - middle) / budget.seeds
    return Row(winner.method.title, study.best_value, again, (each, end - began), diverged, shown)


def accuracy(
    experiment: Experiment, values: dict[str, Any], *, seed: int, scale: float, data: TrainData, net: nn.Module
) -> float:
    """Validation accuracy (0..1) of one run; seeds decide initial weights, order, augmentation and draws."""
    run = fitted(experiment.with_values(values | {"train.seed": seed, "train.plan_seed": seed}), scale)
    needs = run.method.needs
    return fit(run, data, LiveTeacher(net, needs) if needs else None).accuracy


def table(chosen: Sequence[str], budget: Budget, processes: int) -> Iterator[Row]:
    """Rows in the order of their names, each as soon as it and those before it are there."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, _, _ = entry("none", budget)
        data = split(experiment.data, load_data(experiment.data))
        teacher = obtain(experiment, data, Path(folder))
        print(
            f"{len(data.train)} training and {len(data.val)} validation images of digits, {experiment.student.name} of "
            f"{experiment.teacher.name} ({100 * teacher.accuracy:.2f} %), {budget.trials} trials of {budget.epochs} "
            f"epochs, {budget.seeds} more seeds of the best"
        )
        work = partial(tune, budget=budget, teacher=teacher.folder)
        if processes == 1:
            yield from map(work, chosen)
            return
        # A fresh interpreter for each: torch's threads do not survive a fork.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(work, chosen)


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="runs of the best configuration")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2, help="methods at a time, one thread each")
    parser.add_argument("--methods", nargs="+", default=names(), choices=names(), metavar="NAME")
    args = parser.parse_args(arguments)
    budget = Budget(args.trials, args.epochs, args.seeds, args.teacher_epochs)
    began, header = time.monotonic(), HEADER
    for row in table(args.methods, budget, args.processes):
        if header:
            print(header)
        header = ""
        print(row, flush=True)
    print(f"{time.monotonic() - began:.0f} s on {args.processes} processes")


if __name__ == "__main__":
    main(sys.argv[1:])
