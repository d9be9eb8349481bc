"""How much less does the search compute than random search? Compute to reach what 64 full runs at random reach.

    .venv/bin/python tests/benchmarks/search_quality.py --simulation [--seeds 10] [--epochs 18]
    .venv/bin/python tests/benchmarks/search_quality.py --digits --output DIR
    (--first-seed N: other seeds; --set search.eta=4 --set trials=100: other settings than the defaults)

Two arms, ten seeds each. ``random``: random configurations, each trained to the end, the best validation accuracy is
named. ``search``: what a user gets who sets nothing, TPE and ASHA. Both are made of the real parts of a search
(``StudySearcher``, ``StudyASHA``, Optuna's journal, run folders), four trials at a time; time is simulated, a trial's
next epoch ends when it would. What a search would name at a moment is the first of ``akd.searcher.ranking`` among the
trials that have ended.

What counts is not the accuracy a search measured, which luck adds to, but the *true* value of the configuration it
names. In the simulation (``tests/simulated.py``) that is known. On digits it is the mean accuracy of five fresh seeds
on images the search never saw. The target is the mean true value of what the random arms name at their end. For each
seed: the compute, in epochs, that the search needs until what it names first is as good as the target, and how many
times less that is than the 64 full runs. The median over the seeds has a 95 % interval from 10,000 resamplings of
them. A seed that does not get there with as much compute as the random arm has is counted as 1, and said to be.

On digits (``digits_objective.py``) a random arm is drawn without replacement from a pool of ``--pool`` configurations
that are trained once. Everything that is trained is kept in ``--output``: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import simulated
import yaml
from digits_objective import Digits
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from akd.config import Experiment
from akd.folder import Run
from akd.scheduler import METRIC, TIME, make_scheduler
from akd.searcher import StudySearcher, open_study, rank_key
from akd.space import parse

#: Full runs of the random arm.
FULL = 64


class Objective(Protocol):
    """What is searched."""

    def experiment(self, trials: int, seed: int, **search: Any) -> Experiment:
        """A search of it; ``seed`` is that of sampler and trials."""

    def accuracy(self, values: Mapping[str, Any], seed: int, epoch: int) -> float | None:
        """What a run measures after an epoch (0..1); ``None`` if it diverges there."""

    def cost(self, values: Mapping[str, Any]) -> float:
        """Of an epoch."""

    def truth(self, values: Mapping[str, Any]) -> float:
        """True value of a configuration, per cent."""


class Simulation:
    """``tests/simulated.py``, whose constants come from published tables."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def experiment(self, trials: int, seed: int, **search: Any) -> Experiment:
        made = simulated.experiment(trials, self.epochs, seed=seed, confirm=0, **search)
        return made.with_values({"train.seed": seed})

    def accuracy(self, values: Mapping[str, Any], seed: int, epoch: int) -> float | None:
        if epoch == 2 and simulated.diverges(values):
            return None
        return simulated.accuracy(values, seed, epoch, self.epochs)

    def cost(self, values: Mapping[str, Any]) -> float:
        return simulated.cost(values, 1)

    def truth(self, values: Mapping[str, Any]) -> float:
        return simulated.true_value(values)


@dataclass(frozen=True)
class Named:
    """What a search names from a moment on.

    Attributes:
        spent: compute of all trials until then, in epochs.
        ended: trials that have.
        values: the configuration.
    """

    spent: float
    ended: int
    values: dict[str, Any]


@dataclass(order=True)
class _Busy:
    """A trial that is being trained, by when its next epoch ends."""

    at: float
    order: int
    trial: Any = field(compare=False)
    run: Run = field(compare=False)
    epoch: int = field(default=0, compare=False)


def searched(objective: Objective, experiment: Experiment, folder: Path, concurrent: int) -> Iterator[Named]:
    """Run a search in simulated time; what it names whenever a trial has ended.

    Args:
        folder: of the study.
        concurrent: trials at a time.
    """
    seed, epochs = experiment.train.seed, experiment.train.epochs
    folder.mkdir(parents=True, exist_ok=True)
    searcher = StudySearcher(experiment, parse(experiment), open_study(folder / "optuna.log", "s"), folder, {})
    scheduler, busy, order = make_scheduler(experiment), [], itertools.count()
    now, spent, best, ended = 0.0, 0.0, None, 0
    while True:
        while len(busy) < concurrent and (started := _start(searcher, scheduler, f"t{next(order)}")):
            trial, run = started
            heapq.heappush(busy, _Busy(now + objective.cost(run.parameters), int(trial.trial_id[1:]), trial, run))
        if not busy:
            return
        one = heapq.heappop(busy)
        now, one.epoch, spent = one.at, one.epoch + 1, spent + objective.cost(one.run.parameters)
        value = objective.accuracy(one.run.parameters, seed, one.epoch)
        if value is None:
            searcher.on_trial_complete(one.trial.trial_id, {"failed": "diverged"})
            scheduler.on_trial_complete(None, one.trial, {"failed": "diverged"})
        else:
            with open(Path(one.trial.config["folder"]) / "history.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": one.epoch, "val/accuracy": value}) + "\n")
            result = {TIME: one.epoch, METRIC: value}
            searcher.on_trial_result(one.trial.trial_id, result)
            stop = scheduler.on_trial_result(None, one.trial, result) == TrialScheduler.STOP
            if not stop and one.epoch < epochs:
                one.at += objective.cost(one.run.parameters)
                heapq.heappush(busy, one)
                continue
            scheduler.on_trial_complete(None, one.trial, result)
            searcher.on_trial_complete(one.trial.trial_id, result)
            mine = ((*rank_key(one.epoch, value), one.run.number or 0), one.run.parameters)
            best = mine if best is None or mine[0] < best[0] else best
        ended += 1
        if best is not None:
            yield Named(spent, ended, best[1])


def _start(searcher: StudySearcher, scheduler: Any, trial_id: str) -> tuple[Any, Run] | None:
    config = searcher.suggest(trial_id)
    if config is None or config == Searcher.FINISHED:
        return None
    trial = SimpleNamespace(trial_id=trial_id, config=config, status="RUNNING", is_finished=lambda: False)
    scheduler.on_trial_add(None, trial)
    run = Run.read(Path(config["folder"]))
    assert run is not None
    return trial, run


@dataclass(frozen=True)
class Reached:
    """A seed of the search arm.

    Attributes:
        spent: compute when what it names first reached the target; ``None`` if it did not.
        ended: trials that had ended by then.
        last: true value of what it names with all the compute it was given.
    """

    spent: float | None
    ended: int
    last: float


def reach(objective: Objective, moments: Iterator[Named], target: float, budget: float, whole: bool) -> Reached:
    """How a search gets to the target.

    Args:
        budget: compute after which it is given up.
        whole: go on to the budget when it is reached.
    """
    before: Named | None = None
    value, found = float("nan"), None
    for moment in moments:
        if moment.spent > budget:
            break
        if before is None or moment.values != before.values:
            value = objective.truth(moment.values)
        before = moment
        if found is None and value >= target:
            found = moment
            if not whole:
                break
    return Reached(found.spent if found else None, found.ended if found else 0, value)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval over resamplings."""
    draw, many = np.random.default_rng(0), np.asarray(values)
    again = np.median(many[draw.integers(0, len(many), (10_000, len(many)))], axis=1)
    return float(np.median(many)), float(np.percentile(again, 2.5)), float(np.percentile(again, 97.5))


def random_arm(objective: Objective, seed: int, concurrent: int) -> Named:
    """What random search names after its full runs."""
    experiment = objective.experiment(FULL, seed, sampler="random", scheduler="none")
    with tempfile.TemporaryDirectory() as folder:
        return list(searched(objective, experiment, Path(folder), concurrent))[-1]


def drawn_arm(pool: Sequence[tuple[dict[str, Any], list[float]]], seed: int) -> Named:
    """What random search names whose full runs are drawn from a pool of them."""
    mine = random.Random(seed).sample(range(len(pool)), FULL)
    best = max(mine, key=lambda k: pool[k][1][-1])
    return Named(float(sum(len(pool[k][1]) for k in mine)), FULL, pool[best][0])


def compare(
    objective: Objective,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    *,
    concurrent: int = 4,
    trials: int = 200,
    whole: bool = False,
    randoms: Sequence[Named] | None = None,
) -> Iterator[str]:
    """Lines of the comparison."""
    if randoms is None:
        randoms = [random_arm(objective, seed, concurrent) for seed in seeds]
    values = [objective.truth(r.values) for r in randoms]
    target, budget = statistics.fmean(values), statistics.fmean(r.spent for r in randoms)
    spread = f"{min(values):.2f} to {max(values):.2f}"
    yield f"random: {FULL} full runs, {budget:.0f} epochs; true value {target:.2f} % on average, {spread}"
    ratios, reached = [], []
    for seed in seeds:
        experiment = objective.experiment(trials, seed, **settings)
        with tempfile.TemporaryDirectory() as folder:
            moments = searched(objective, experiment, Path(folder), concurrent)
            reached.append(reach(objective, moments, target, budget, whole))
        spent = reached[-1].spent
        ratios.append(budget / spent if spent else 1.0)
        told = "not reached"
        if spent:
            told = f"{spent:.0f} epochs ({reached[-1].ended} trials), {ratios[-1]:.1f} times less"
        yield f"  seed {seed}: {told}; named at last {reached[-1].last:.2f} %"
    censored = sum(r.spent is None for r in reached)
    note = f"; {censored} of {len(ratios)} seeds not reached, counted as 1" if censored else ""
    middle, low, high = median_interval(ratios)
    yield f"search: reaches it with {middle:.1f} times less (95 % interval {low:.1f} to {high:.1f}){note}"


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulation", action="store_true", help="of tests/simulated.py")
    what.add_argument("--digits", action="store_true", help="of real training")
    add = parser.add_argument
    add("--seeds", type=int, default=10)
    add("--first-seed", type=int, default=0)
    add("--epochs", type=int, help="default 18 in the simulation, 9 on digits")
    add("--concurrent", type=int, default=4)
    add("--trials", type=int, default=200, help="of the search arm, at most")
    add("--whole", action="store_true", help="go on to the random arm's compute when the target is reached")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of the search section, for the search arm")
    add("--pool", type=int, default=96, help="configurations the random arms on digits are drawn from")
    add("--output", type=Path, default=Path("search_quality"), help="what is trained on digits is kept there")
    args = parser.parse_args(arguments)
    settings = {k: yaml.safe_load(v) for k, _, v in (s.partition("=") for s in args.set)}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    objective: Objective = Simulation(args.epochs or 18)
    randoms = None
    if args.digits:
        objective = digits = Digits(args.output.absolute(), args.epochs or 9)
        pool = digits.pool(args.pool)
        randoms = [drawn_arm(pool, seed) for seed in seeds]
    how: dict[str, Any] = {"concurrent": args.concurrent, "trials": args.trials, "whole": args.whole}
    for line in compare(objective, seeds, settings, randoms=randoms, **how):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
