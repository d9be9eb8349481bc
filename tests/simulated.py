"""A simulated objective: learning curves of known value, optimum and cost, with no training, for everything around it.

It plays the search of Angular-KD's settings for ResNet-32x4 to 8x4 on CIFAR-100. Its constants were set from published
tables before any sampler or scheduler was run on it, and stay: a search is tuned to the objective, never the other way.
Test accuracies in per cent, best single-teacher students of this pair:

    student alone                 72.50   Tian et al. 2020 (CRD, arXiv:1910.10699), table of the RepDistiller README
    KD, weight 0.9                73.33   the same
    KD, z-scored logits           76.62   Sun et al. 2024 (LSKD, arXiv:2403.01427)
    DKD, weight 1                 76.32   Zhao et al. 2022 (arXiv:2203.08679), CIFAR-100 table
    DKD, z-scored logits          77.01   Sun et al. 2024
    best of one teacher           78.33   SKD, CVPR 2026 (multi-level KD with z-scored logits: 78.28, Sun et al. 2024)
    spread over seeds, one std    0.25    KD, 3 runs, and 0.18, five reproductions of DKD (mdistiller, issue 7)
    best minus last epoch         0.32    mean of 40 logs of the LSKD authors
    epoch 150 of 240              9.06    points below the end, the log of multi-level KD by the LSKD authors

A host's gain over the student alone is the z-scored one at the best weight and temperature and the published one at
the published weight: that places the best weights (5.4 for KD, 1.8 for DKD). Views add what is left to the best of one
teacher, most with five (as in Angular-KD, arXiv:2510.22480); KD with the released soft-target weight, 2.44 times 0.9,
and views comes to 76.3 here, 76.08 there. Widths, the learning rate's part, the shape of heads and of slow starts have
no published sweep and are assumed: slow starts are such that the first rung (a ninth of the epochs) ranks
configurations fairly and the second well (``tests/test_simulated.py`` holds the rank correlations). The error of a
finite validation split is common to all configurations and left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.folder import Run

ALONE, BEST = 72.50, 78.33
#: Host -> its published weight, its gain there, its gain with z-scored logits.
HOSTS = {"kd": (0.9, 73.33 - ALONE, 76.62 - ALONE), "dkd": (1.0, 76.32 - ALONE, 77.01 - ALONE)}
VIEWS = BEST - 77.01
SEED_STD, EPOCH_STD = 0.20, 0.14  # together 0.24; the largest of sixty epochs lies 2.3 of its stds above the last
GAP, FALL = 77.0, 2.85  # points from chance to the end, and how fast they are made up

SPACE: dict[str, Any] = {
    "method.host.name": {"choices": ["kd", "dkd"]},
    "method.host.weight": {"type": "float", "low": 0.5, "high": 12.0, "log": True},
    "method.host.temperature": {"type": "float", "low": 1.0, "high": 8.0},
    "method.views.count": {"type": "int", "low": 1, "high": 8},
    "method.views.margin": {"type": "float", "low": 0.05, "high": 0.5},
    "method.views.head": {"choices": ["full", "low_rank"]},
    "method.views.head_rank": {
        "type": "int",
        "low": 4,
        "high": 64,
        "log": True,
        "when": {"method.views.head": "low_rank"},
    },
    "train.lr": {"type": "float", "low": 0.01, "high": 0.2, "log": True},
}


def best_weight(host: str) -> float:
    """The host's weight of the largest gain: a bell of one e-fold's width through the two published gains."""
    published, there, best = HOSTS[host]
    return published * math.exp(math.sqrt(2 * math.log(best / there)))


#: The best configuration; its true value is :data:`BEST`.
OPTIMUM: dict[str, Any] = {
    "method.host.name": "dkd",
    "method.host.weight": best_weight("dkd"),
    "method.host.temperature": 4.0,
    "method.views.count": 5,
    "method.views.margin": 0.2,
    "method.views.head": "low_rank",
    "method.views.head_rank": 16,
    "train.lr": 0.05,
}


def _bell(distance: float, width: float) -> float:
    return math.exp(-0.5 * (distance / width) ** 2)


def true_value(values: Mapping[str, Any]) -> float:
    """Mean accuracy (per cent) of a configuration over all seeds, after its last epoch, whatever their number."""
    host, count = values["method.host.name"], values["method.views.count"]
    gain = HOSTS[host][2] * _bell(math.log(values["method.host.weight"] / best_weight(host)), 1.0)
    gain *= _bell(math.log(values["method.host.temperature"] / 4.0), 0.8)
    views = VIEWS * _bell(count - 5, 3.0)
    views *= _bell(values["method.views.margin"] - (0.2 + 0.03 * (count - 5)), 0.15)  # more views want more room
    low_rank = values["method.views.head"] == "low_rank"
    views *= _bell(math.log(values["method.views.head_rank"] / 16), 0.8) if low_rank else 0.8
    return ALONE + gain + views - 0.8 * math.log(values["train.lr"] / 0.05) ** 2


def diverges(values: Mapping[str, Any]) -> bool:
    """True if training ends after its first epoch: steps too large for the weight."""
    return values["train.lr"] * values["method.host.weight"] > 1.0


def slow_start(values: Mapping[str, Any]) -> float:
    """Points by which a configuration is behind at first, and which it makes up for later (below 0: ahead).

    Heavy soft targets, more views and a large learning rate start slowly.
    """
    found = 2.0 * math.log(values["method.host.weight"] / 2.4) + 0.5 * (values["method.views.count"] - 4.5)
    return found + 2.0 * math.log(values["train.lr"] / 0.045)


def curve(values: Mapping[str, Any], epochs: int) -> list[float]:
    """Mean accuracy (per cent) over all seeds after each epoch; curves cross, the last point is the true value."""
    return [_at(true_value(values), slow_start(values), epoch / epochs) for epoch in range(1, epochs + 1)]


def _at(final: float, slow: float, t: float) -> float:
    left = (math.exp(-FALL * t) - math.exp(-FALL)) / (1 - math.exp(-FALL))
    return max(1.0, final - GAP * left - slow * math.exp(-2 * t) * (1 - t))


def accuracy(values: Mapping[str, Any], seed: int, epoch: int, epochs: int) -> float:
    """What a run measures after an epoch (0..1): the curve with the noise of (configuration, seed, epoch)."""
    t = epoch / epochs
    return _noisy(_at(true_value(values), slow_start(values), t), _key(values), seed, epoch, t)


def control(name: str, seed: int, epoch: int, epochs: int) -> float:
    """What a control measures after an epoch (0..1): the student alone, or KD as published."""
    final = ALONE + (HOSTS["kd"][1] if name == "kd" else 0.0)
    return _noisy(_at(final, -1.0, epoch / epochs), name, seed, epoch, epoch / epochs)


def _noisy(value: float, key: str, seed: int, epoch: int, t: float) -> float:
    of_seed, of_epoch = _draw(key, seed), _draw(key, seed, epoch)
    noise = SEED_STD * of_seed + EPOCH_STD * (1 + 4 * math.exp(-FALL * t) * (1 - t)) * of_epoch
    return min(max(value + noise, 0.0), 100.0) / 100


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps({k: values[k] for k in SPACE if k in values})


def _draw(*parts: Any) -> float:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(digest).gauss(0, 1)


def cost(values: Mapping[str, Any], epochs: int) -> float:
    """Epochs of plain KD that so many epochs of a configuration take (views: ``tests/benchmarks/cached_step.py``)."""
    return epochs * (1 + 0.004 * values["method.views.count"])


#: Kinds of runs whose parameters are drawn from the space; the others are controls.
OF_THE_SPACE = ("trial", "confirm")

# -- in a study ----------------------------------------------------------------------------------------


def experiment(trials: int, epochs: int, **search: Any) -> Experiment:
    """A search of the space. Data and networks, which no trial touches, are small, for teacher and final runs."""
    return resolve(
        {
            "data": {"name": "digits", "subset": 300},
            "teacher": {"name": "wrn_16_1", "train": {"epochs": 1}},
            "student": "resnet8",
            "method": {"host": "kd", "views": {"name": "angular_kd", "head_warmup_epochs": 0}},
            "train": {"epochs": epochs, "threads": 1},
            "search": {"trials": trials, "champion_seeds": 1, "final_workers": 1, **search},
            "space": SPACE,
        }
    )


def train(config: Mapping[str, Any]) -> None:
    """Tune's trainable in the place of :func:`akd.trial.run_trial`: writes a run's folder as training does, reports."""
    from ray import tune

    from akd.config import load
    from akd.scheduler import COST, METRIC, TIME

    folder = Path(config["folder"])
    run, known = Run.read(folder), run_folder.history(folder)
    assert run is not None
    loaded = load(folder / "experiment.yaml", {}, strict=False).train
    if known:  # the trainer reports the last epoch it kept once more
        tune.report({TIME: int(known[-1]["epoch"]), METRIC: known[-1]["val/accuracy"]})
    for epoch in range(len(known) + 1, loaded.epochs + 1):
        if run.kind in OF_THE_SPACE and epoch == 2 and diverges(run.parameters):
            tune.report({"failed": "diverged in epoch 2: train/loss not finite"})
            return
        (entry,) = write_epochs(folder, run, [epoch], loaded.epochs, loaded.seed)
        tune.report({TIME: epoch, METRIC: entry["val/accuracy"], COST: entry["time/epoch_s"] * entry["time/devices"]})


def write_epochs(folder: Path, run: Run, epochs: Iterable[int], of: int, seed: int = 0) -> list[dict[str, float]]:
    """What training leaves in a run's folder after some of its ``of`` epochs: students of a few bytes, history."""
    entries = [_entry(run, folder.name, seed, epoch, of) for epoch in epochs]
    for entry in entries:
        place = folder / "student"
        place.mkdir(exist_ok=True)
        (place / "student.safetensors").write_bytes(bytes(64))
        (place / "config.json").write_text(json.dumps({"epoch": entry["epoch"]}), encoding="utf-8")
        with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    return entries


def _entry(run: Run, name: str, seed: int, epoch: int, epochs: int) -> dict[str, float]:
    """A line of ``history.jsonl`` with as many figures as a run of Angular-KD writes."""
    trial = run.kind in OF_THE_SPACE
    value = accuracy(run.parameters, seed, epoch, epochs) if trial else control(name, seed, epoch, epochs)
    loss = -math.log(max(value, 0.01))
    views = ("angle_to_teacher", "angle_between", "inside", "diversity", "ensemble_accuracy", "soft_weight")
    terms = ("ce", "kd", "views/supervision", "views/embedding_inter", "views/embedding_intra", "views/logit_inter")
    return {
        "epoch": epoch,
        "at": time.time(),
        "train/loss": loss,
        "train/accuracy": value,
        **{f"loss/{term}": loss / (k + 2) for k, term in enumerate(terms)},
        **({f"views/{view}": value / (k + 1) for k, view in enumerate(views)} if trial else {}),
        "lr": 0.05 * (1 - (epoch - 1) / epochs),
        "time/teacher_asked": 45_000.0,
        "time/teacher_images": 0.0,
        "time/epoch_s": 60.0 * (cost(run.parameters, 1) if trial else 1.0),
        "time/images_per_s": 750.0,
        "time/devices": 1.0,
        "val/accuracy": value,
        "val/loss": loss,
    }


@contextmanager
def instead_of_training() -> Iterator[None]:
    """Within the block a search's trials are simulated; everything else is the real thing."""
    import sys

    from ray import cloudpickle

    from akd import tuning

    module, real = sys.modules[__name__], tuning.run
    cloudpickle.register_pickle_by_value(module)  # workers need not find this file
    tuning.run = partial(real, trainable=train)
    try:
        yield
    finally:
        tuning.run = real
        cloudpickle.unregister_pickle_by_value(module)
