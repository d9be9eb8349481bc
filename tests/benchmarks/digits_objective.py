"""A search on digits that can be looked into: what is trained is kept, and true values are measured on other images.

360 training images leave room for a search to find something. Half of the 1,078 validation images are what a search
sees; the other half and the 360 test images, which no search sees, tell what a configuration is worth.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from akd import folder as run_folder
from akd.checkpoint import write_json
from akd.config import Experiment, resolve
from akd.data import TrainData, split
from akd.data import load as load_data
from akd.data.loader import held_out_batches
from akd.errors import DivergedError
from akd.fit import EpochRecord, fit, make_loader
from akd.folder import Run
from akd.metrics import evaluate
from akd.rungs import rungs
from akd.space import parse
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.teacher.keep import load_teacher, obtain

SPACE = {
    "train.lr": {"type": "float", "low": 0.005, "high": 0.5, "log": True},
    "train.weight_decay": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "method.host.temperature": {"type": "float", "low": 1.0, "high": 8.0},
    "method.host.weight": {"type": "float", "low": 0.5, "high": 20.0, "log": True},
    "method.host.ce_weight": {"type": "float", "low": 0.05, "high": 1.0},
}
#: Fresh seeds of a true value.
SEEDS = range(1001, 1006)


class Digits:
    """Plain distillation on digits.

    Args:
        folder: everything trained is kept there.
        epochs: of a run.
        given: more of the experiment, over what is written here.
    """

    def __init__(self, folder: Path, epochs: int = 9, given: Mapping[str, Any] | None = None):
        self.folder, self.epochs = folder, epochs
        self.tree: dict[str, Any] = {
            "data": {"name": "digits", "validation": 0.75},
            "teacher": {"name": "wrn_16_2", "train": {"epochs": 20, "lr": 0.1, "batch_size": 32, "threads": 1}},
            "student": "resnet8",
            "method": "kd",
            "train": {"epochs": epochs, "batch_size": 32, "threads": 1},
            "space": SPACE,
        }
        self.given = dict(given or {})

    def experiment(self, trials: int, seed: int, **search: Any) -> Experiment:
        """A search; ``seed`` is that of sampler and trials."""
        made = resolve(self.tree | {"search": {"trials": trials, "seed": seed, "confirm": 0, **search}})
        return made.with_values(self.given | {"train.seed": seed, "train.plan_seed": seed})

    def cost(self, values: Mapping[str, Any]) -> float:
        """Of an epoch."""
        return 1.0

    def pool(self, size: int) -> list[tuple[dict[str, Any], list[float]]]:
        """Configurations drawn at random, each trained to its end once, with what they measured after each epoch."""
        draw, space = random.Random(0), parse(self.experiment(1, 0))
        drawn = [space.draw({}, draw) for _ in range(size)]
        return [(v, [self.accuracy(v, 0, e) or 0.0 for e in range(1, self.epochs + 1)]) for v in drawn]

    def accuracy(self, values: Mapping[str, Any], seed: int, epoch: int) -> float | None:
        """What a run measures after an epoch (0..1), training up to the next rung if need be; ``None``: it diverged."""
        experiment = self.experiment(1, seed).with_values(values)
        folder = self._folder("runs", experiment, seed)
        known = {int(e["epoch"]): e["val/accuracy"] for e in run_folder.history(folder)}
        if epoch in known:
            return known[epoch]
        if (folder / "diverged").exists():
            return None
        ends = [*rungs(self.epochs, experiment.search.grace, experiment.search.eta), self.epochs]
        until, reached = min(e for e in ends if e >= epoch), [0]

        def on_epoch(record: EpochRecord) -> None:
            reached[0] = record.epoch

        if Run.read(folder) is None:
            run_folder.create(folder, experiment, Run("trial", folder.name))
        seen = replace(self._data, val=self._data.val[::2])
        try:
            run_folder.train(
                folder, experiment, seen, self._teacher(), on_epoch=on_epoch, stop=lambda: reached[0] >= until
            )
        except DivergedError:
            (folder / "diverged").touch()
        found = {int(e["epoch"]): e["val/accuracy"] for e in run_folder.history(folder)}
        return found.get(epoch)

    def truth(self, values: Mapping[str, Any]) -> float:
        """Per cent of the images no search sees, mean over fresh seeds."""
        return statistics.fmean(self._held_out(values, seed) for seed in SEEDS)

    def _held_out(self, values: Mapping[str, Any], seed: int) -> float:
        experiment = self.experiment(1, seed).with_values(values)
        path = self._folder("truths", experiment, seed).with_suffix(".json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unseen = self._data.val[1::2]
            try:
                student = fit(experiment, replace(self._data, val=self._data.val[:0]), self._teacher()).student
            except DivergedError:
                write_json(path, {"accuracy": 0.0})
                return 0.0
            loader = make_loader(experiment, self._data, torch.device("cpu"))[0]
            half = evaluate(student, loader.plain(unseen))["accuracy"]
            test = evaluate(student, held_out_batches(self._data.dataset, "cpu"))["accuracy"]
            count = len(self._data.dataset.test_labels)
            write_json(path, {"accuracy": (half * len(unseen) + test * count) / (len(unseen) + count)})
        return 100 * float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])

    def _folder(self, kind: str, experiment: Experiment, seed: int) -> Path:
        own = repr((experiment.data, experiment.teacher, experiment.student, experiment.method, experiment.train))
        return self.folder / kind / f"{hashlib.sha256(own.encode()).hexdigest()[:16]}-seed{seed}"

    @cached_property
    def _data(self) -> TrainData:
        config = self.experiment(1, 0).data
        return split(config, load_data(config))

    def _teacher(self) -> CachedTeacher:
        torch.set_num_threads(1)
        needs = frozenset({"logits"})
        return CachedTeacher(self._net, needs, Store(self.folder / "cache", 10**9), keep=needs)

    @cached_property
    def _net(self) -> Any:
        return load_teacher(obtain(self.experiment(1, 0), self._data, self.folder / "teachers").folder)
