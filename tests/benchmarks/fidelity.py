"""Do rungs rank? Rank correlation of the validation accuracy at each rung with that of full training.

    .venv/bin/python tests/benchmarks/fidelity.py --data digits --output DIR
    AKD_DATA=DIR .venv/bin/python tests/benchmarks/fidelity.py --data cifar100 --output DIR
    (--part 1/2 and --part 2/2: two processes; --minutes N: begin no run after that; --table: print what is there)

Configurations of plain distillation are drawn at random (learning rate, weight decay, temperature, both weights); each
is trained to the end from ``--seeds`` seeds with each schedule. A rung's score is one run's, as a search sees it; what
it is to foretell is the mean of the accuracies at the last epoch of the *other* seeds, so that luck of a run does not
count as knowledge. Every run plays the search's trial in turn, and correlations (Spearman) are means over them, with a
95 % interval from 1,000 resamplings of the configurations. A run that diverges counts as 0 from there on.

Scored weights: ``weights`` are those of the step, ``ema auto`` averaged ones of the same run. Full training is that of
the same schedule and the same scored weights; ``final`` is its accuracy, mean over all configurations and over the best
quarter of them, which is what a search hands over (in brackets: over the first row's, with its interval).

A run that is finished is kept in ``--output`` and never made again. One thread a process; the teacher is asked once
and its outputs are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from akd.checkpoint import write_json
from akd.config import Experiment, resolve
from akd.data import TrainData, split
from akd.data import load as load_data
from akd.data.augment import Augment
from akd.data.dataset import DataConfig, Dataset
from akd.errors import DivergedError
from akd.fit import EpochRecord, fit, make_loader
from akd.metrics import evaluate
from akd.rungs import rungs
from akd.space import parse
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.teacher.keep import load_teacher, obtain

SCHEDULES = ("cosine", "restarts")
#: Weights of the step, and averaged ones as ``train.ema: auto`` makes them.
SCORES = ("weights", "ema auto")
SPACE = {
    "train.lr": {"type": "float", "low": 0.005, "high": 0.5, "log": True},
    "train.weight_decay": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "method.host.temperature": {"type": "float", "low": 1.0, "high": 8.0},
    "method.host.weight": {"type": "float", "low": 0.5, "high": 20.0, "log": True},
    "method.host.ce_weight": {"type": "float", "low": 0.05, "high": 1.0},
}
SETUPS: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"name": "digits", "validation": 0.5},
        "teacher": {"name": "wrn_16_2", "train": {"epochs": 20, "lr": 0.1, "threads": 1}},
        "train": {"epochs": 18},
    },
    "cifar100": {
        "data": {"name": "fidelity:cifar_part", "subset": 2000, "validation": 0.35},
        "teacher": {"name": "wrn_16_2", "train": {"epochs": 20, "lr": 0.1, "threads": 1}},
        "train": {"epochs": 9},
    },
}


def cifar_part(folder: Path) -> Dataset:
    """20 classes of CIFAR-100 in 16x16 pixels: a hundred images of each are learned in seconds."""
    whole = load_data(DataConfig(name="cifar100", dir=str(folder)))

    def part(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mine = labels < 20
        small = functional.avg_pool2d(images[mine].float(), 2).round().to(torch.uint8)
        return small, labels[mine]

    images, labels = part(whole.images, whole.labels)
    tests = part(whole.test_images, whole.test_labels)
    view = Augment(padding=2, flip=True)
    return Dataset("cifar-part", images, labels, *tests, whole.classes[:20], whole.mean, whole.std, augment=view)


def setup(data: str, epochs: int | None = None, subset: int | None = None) -> dict[str, Any]:
    """The experiment all runs start from. Averaging changes no step: weights of the step are scored beside it."""
    tree: dict[str, Any] = copy.deepcopy(SETUPS[data]) | {"student": "resnet8", "method": "kd", "space": SPACE}
    tree["train"] |= {"threads": 1, "ema": "auto"} | ({"epochs": epochs} if epochs else {})
    tree["data"] |= {"subset": subset} if subset else {}
    return tree


def curves(experiment: Experiment, data: TrainData, source: CachedTeacher, at: Sequence[int]) -> dict[str, list[float]]:
    """Validation accuracy (0..1) of both kinds of weights of one run after the epochs ``at``; 0 once it diverged."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    loader = make_loader(experiment, data, torch.device("cpu"))[0]

    def report(record: EpochRecord) -> None:
        if record.epoch in at:
            weights = evaluate(record.state.student, loader.plain(data.val))["accuracy"]
            for name, value in zip(SCORES, (weights, record.metrics["val/accuracy"]), strict=True):
                found[name].append(value)

    with contextlib.suppress(DivergedError):
        fit(experiment, data, source, report=report)
    return {name: values + [0.0] * (len(at) - len(values)) for name, values in found.items()}


@dataclass(frozen=True)
class Bench:
    """The runs of a table.

    Attributes:
        tree: the experiment all start from.
        configurations: how many are drawn.
        folder: where finished runs are kept.
    """

    tree: dict[str, Any]
    configurations: int
    seeds: int
    schedules: tuple[str, ...]
    folder: Path

    @cached_property
    def experiment(self) -> Experiment:
        """Resolved; where its images lie is no part of what a run is."""
        data = self.tree["data"]
        if data["name"] != "digits":
            data = data | {"dir": os.environ.get("AKD_DATA") or sys.exit("set AKD_DATA to the folder with cifar100/")}
        return resolve(self.tree | {"data": data})

    @cached_property
    def drawn(self) -> list[dict[str, Any]]:
        """The configurations."""
        space, draw = parse(self.experiment), random.Random(0)
        return [space.draw({}, draw) for _ in range(self.configurations)]

    @property
    def at(self) -> list[int]:
        """Rungs of a search, and the last epoch."""
        train, search = self.experiment.train, self.experiment.search
        return sorted({*rungs(train.epochs, search.grace, search.eta), train.epochs})

    def runs(self) -> Iterator[tuple[str, int, int, Experiment, Path]]:
        """(schedule, configuration, seed, experiment, file), seed by seed, so that what is there is a table."""
        for seed in range(self.seeds):
            for number, values in enumerate(self.drawn):
                for schedule in self.schedules:
                    own = values | {"train.schedule": schedule, "train.seed": seed, "train.plan_seed": seed}
                    run = self.experiment.with_values(own)
                    told = [self.tree, own]  # what was asked for; a default that changes is another experiment's
                    mark = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
                    yield schedule, number, seed, run, self.folder / f"{schedule}-{number:02d}-seed{seed}-{mark}.json"

    def train(self, part: tuple[int, int], until: float) -> None:
        """Make what is missing of a part of the configurations."""
        torch.set_num_threads(1)
        data = split(self.experiment.data, load_data(self.experiment.data))
        teacher = obtain(self.experiment, data, self.folder / "teachers")
        net, store = load_teacher(teacher.folder), Store(self.folder / "cache", 20 * 10**9)
        for _, number, _, run, path in self.runs():
            if number % part[1] != part[0] or path.exists() or time.monotonic() > until:
                continue
            source = CachedTeacher(net, run.method.needs, store, keep=frozenset(run.method.needs))
            began = time.process_time()
            found = curves(run, data, source, self.at)
            write_json(path, {"scores": found, "seconds": time.process_time() - began})

    def scores(self) -> dict[str, np.ndarray]:
        """Schedule -> [scored weights, seeds, configurations, epochs of ``at``]; NaN where a run is missing."""
        shape = (len(SCORES), self.seeds, len(self.drawn), len(self.at))
        found = {s: np.full(shape, np.nan) for s in self.schedules}
        for schedule, number, seed, _, path in self.runs():
            if path.exists():
                kept = json.loads(path.read_text(encoding="utf-8"))["scores"]
                found[schedule][:, seed, number] = [kept[name] for name in SCORES]
        return found


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlations of samples [..., n], ties at their mean rank; 0 where one of two is constant."""
    ranks = [rankdata(x, axis=-1) - (np.shape(x)[-1] + 1) / 2 for x in (a, b)]
    sizes = np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    return np.where(sizes > 0, (ranks[0] * ranks[1]).sum(-1) / np.maximum(sizes, 1e-12), 0.0)


def correlation(scores: np.ndarray, rung: int, chosen: np.ndarray) -> np.ndarray:
    """Mean over seeds of the rank correlation of a rung with the other seeds' mean at the end.

    Args:
        scores: [seeds, configurations, epochs].
        rung: index of the epoch.
        chosen: [..., n] configurations, repetitions allowed; what is found is [...].
    """
    last = scores[:, :, -1]
    others = (last.sum(0) - last) / (len(last) - 1)
    return spearman(scores[:, chosen, rung], others[:, chosen]).mean(0)


def mean_correlation(scores: np.ndarray, stops: Sequence[int], chosen: np.ndarray) -> np.ndarray:
    """Mean over some rungs."""
    return np.mean([correlation(scores, k, chosen) for k in stops], axis=0)


def interval(value: Callable[[np.ndarray], np.ndarray], configurations: int) -> tuple[float, float, float]:
    """``value`` of all configurations, and its 95 % interval over 1,000 resamplings of them."""
    draw = np.random.default_rng(0)
    low, high = np.percentile(value(draw.integers(0, configurations, (1000, configurations))), [2.5, 97.5])
    return float(value(np.arange(configurations))), float(low), float(high)


def table(bench: Bench) -> Iterator[str]:
    """Lines of the table, over the configurations of which every run is there."""
    scores = bench.scores()
    whole = [c for c in range(len(bench.drawn)) if all(np.isfinite(s[:, :, c]).all() for s in scores.values())]
    data, train = bench.experiment.data, bench.experiment.train
    yield f"{data.name}, {len(whole)} configurations, {bench.seeds} seeds, {train.epochs} epochs; rungs {bench.at[:-1]}"
    if len(whole) < 3:
        return
    columns = [f"rung {e}" for e in bench.at[:-1]] + ["mean of rungs", f"seeds, {bench.at[-1]}"]
    yield f"{'schedule':<9} {'scored':<9} " + " ".join(f"{c:>20}" for c in columns) + "   final, best quarter"
    reference = scores[bench.schedules[0]][0][:, whole]
    for schedule in bench.schedules:
        for name, all_scores in zip(SCORES, scores[schedule], strict=True):
            own = all_scores[:, whole]
            stops = range(len(bench.at) - 1)
            kinds = [[k] for k in stops] + [[*stops], [len(stops)]]
            cells = [interval(partial(mean_correlation, own, k), len(whole)) for k in kinds]
            told = " ".join(f"{r:5.2f} ({low:5.2f} to {high:4.2f})" for r, low, high in cells)
            yield f"{schedule:<9} {name:<9} {told}   {_ends(own, reference)}"
    yield f"{'':<20}intervals: 95 %, over configurations; last column of correlations: one seed's end with the others'"


def _ends(own: np.ndarray, reference: np.ndarray) -> str:
    """Mean accuracy in per cent at the end of all and of the best quarter, and the difference to the reference."""
    ends, before = own[:, :, -1].mean(0), reference[:, :, -1].mean(0)
    quarter = max(1, len(ends) // 4)

    def best(chosen: np.ndarray) -> np.ndarray:
        own_best, before_best = (np.sort(x[chosen], -1)[..., -quarter:].mean(-1) for x in (ends, before))
        return 100 * (own_best - before_best)

    gain, low, high = interval(best, len(ends))
    top = 100 * np.sort(ends)[-quarter:].mean()
    return f"{100 * ends.mean():5.2f}, {top:5.2f} ({gain:+.2f}: {low:+.2f} to {high:+.2f})"


def main(arguments: Sequence[str]) -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", choices=sorted(SETUPS), default="digits")
    add("--configurations", type=int, default=24)
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, help="default 18 for digits, 9 for cifar100")
    add(
        "--subset",
        type=int,
        help="training and validation images; default all digits, 2,000 of cifar100",
    )
    add("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    add("--output", type=Path, default=Path("fidelity"), help="folder in which finished runs are kept")
    add("--part", default="1/1", help="k/n: every n-th configuration, from the k-th on")
    add("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    add("--table", action="store_true", help="train nothing")
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: a seed is judged by the others")
    tree, folder = setup(args.data, args.epochs, args.subset), args.output.absolute() / args.data
    bench = Bench(tree, args.configurations, args.seeds, tuple(args.schedules), folder)
    if not args.table:
        bench.folder.mkdir(parents=True, exist_ok=True)
        k, _, n = args.part.partition("/")
        bench.train((int(k) - 1, int(n)), time.monotonic() + 60 * args.minutes)
    for line in table(bench):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
