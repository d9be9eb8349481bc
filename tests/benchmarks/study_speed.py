"""A study against as many runs of the loop everybody uses: 16 trials x 2 epochs x 2,000 images, plain distillation.

    .venv/bin/python tests/benchmarks/study_speed.py [--data-dir DIR] [--trials 16] [--epochs 2] [--images 2000]
                                                     [--threads 1] [--workers 0] [--steps 4] [--cache on]
                                                     [TEACHER:STUDENT ...]

Trial for trial in turn: one of akd, carried out as a search carries out a trial (``akd.job.run_job``, which Tune's
worker calls: folder, checkpoints, the study's teacher), and one of the baseline loop of ``baseline.py``, with the same
learning rate. ``training`` is what epochs take, data, teacher and optimizer included; ``evaluation`` is of the 222
validation images after each epoch; ``fixed`` is the rest of a trial: files, networks, checkpoints. What Ray adds to a
trial is measured by ``trial_cost.py``.

The ceiling comes from steps of teacher and student alone, images at hand, timed between the trials of the same run:
each trial of the baseline pays both, a study must pay the student in each trial and the teacher once for the images of
each epoch. ``share`` is how much of the ceiling the ratio of the training times reaches.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from baseline import BATCH, CLASSES, PAIRS, Loop, calibrated, data_folder, describe_data
from torch.nn import functional as F

from akd import fit as loop
from akd import folder as run_folder
from akd import metrics
from akd.config import Experiment, resolve
from akd.data import TrainData, load, split
from akd.folder import Run
from akd.job import Job, run_job
from akd.models import seeded_model
from akd.teacher.keep import obtain

PARTS = ("training", "evaluation", "fixed")


class Study:
    """Trials of akd and of the baseline on one pair, and what they took.

    Args:
        pair: teacher and student.
        args: of the command line.
        folder: of CIFAR-100.
        scratch: for the runs of akd.
    """

    def __init__(self, pair: tuple[str, str], args: argparse.Namespace, folder: Path | None, scratch: Path):
        self.args, self.folder, self.scratch = args, folder, scratch
        self.student = pair[1]
        data: dict[str, Any] = {"name": "cifar100", "dir": str(folder)} if folder else {"name": "baseline:stand_in"}
        weights = scratch / "teacher.pth"
        train = {"epochs": args.epochs, "batch_size": BATCH, "nesterov": True, "ema": 0, "threads": args.threads}
        self.experiment: Experiment = resolve(
            {
                "data": {**data, "subset": round(args.images / 0.9), "validation": 0.1},
                "teacher": {"name": pair[0], "weights": str(weights)},
                "student": self.student,
                "method": "kd",
                "train": train,
            }
        )
        self.data: TrainData = split(self.experiment.data, load(self.experiment.data))
        self.images = torch.randn(BATCH, 3, 32, 32)
        self.labels = torch.randint(CLASSES, (BATCH,))
        self.net = calibrated(seeded_model(pair[0], CLASSES, 1), self.images)
        torch.save(self.net.state_dict(), weights)
        self.teacher = obtain(self.experiment, self.data, scratch / "teachers")
        # As a study tells its trials where the teacher's outputs are shared.
        kept: dict[str, Any] = {"cache": str(scratch / "cache"), "keep": ("logits",)}
        self.shared = kept if args.cache == "on" else {}
        self.plain = seeded_model(self.student, CLASSES, 0).train()
        self.optimizer = torch.optim.SGD(self.plain.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        self.times: dict[str, dict[str, list[float]]] = {who: {p: [] for p in PARTS} for who in ("akd", "baseline")}
        self.steps: dict[str, list[float]] = {"teacher": [], "student": []}

    def measure(self) -> None:
        """Every trial of both sides, in turn."""
        draw = random.Random(0)
        for number in range(self.args.trials):
            lr = 10 ** draw.uniform(-2, -1)
            self.time_steps()
            self._put("akd", self.akd_trial(number, lr))
            self._put("baseline", self.baseline_trial(lr))

    def _put(self, who: str, found: tuple[float, float, float]) -> None:
        whole, training, evaluation = found
        for part, seconds in zip(PARTS, (training, evaluation, whole - training - evaluation), strict=True):
            self.times[who][part].append(seconds)

    def akd_trial(self, number: int, lr: float) -> tuple[float, float, float]:
        """Seconds of the whole trial, of its training and of its evaluation."""
        began, evaluation = time.perf_counter(), [0.0]
        where = self.scratch / "trials" / f"{number:05d}"
        run_folder.create(where, self.experiment.with_values({"train.lr": lr}), Run("trial", f"trial {number}", number))

        def evaluate(*arguments: Any) -> dict[str, float]:
            before = time.perf_counter()
            scores = metrics.evaluate(*arguments)
            evaluation[0] += time.perf_counter() - before
            return scores

        with mock.patch.object(loop, "evaluate", evaluate):
            run_job(Job(str(where), str(self.teacher.folder), **self.shared))
        training = sum(entry["time/epoch_s"] for entry in run_folder.history(where))
        return time.perf_counter() - began, training, evaluation[0]

    def baseline_trial(self, lr: float) -> tuple[float, float, float]:
        """The same of the baseline."""
        began = time.perf_counter()
        student = seeded_model(self.student, CLASSES, 0)
        loop = Loop(student, self.net, self.data.train, self.folder, self.data.val, self.args.workers, lr=lr)
        training = evaluation = 0.0
        for _ in range(self.args.epochs):
            training += loop.timed_epoch()
            before = time.perf_counter()
            loop.evaluate()
            evaluation += time.perf_counter() - before
        return time.perf_counter() - began, training, evaluation

    def time_steps(self) -> None:
        """A few steps of teacher and student alone, for the ceiling."""
        self.net.eval()

        def teach() -> None:
            with torch.no_grad():
                self.net(self.images)

        def train() -> None:
            F.cross_entropy(self.plain(self.images).logits, self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        for name, call in (("teacher", teach), ("student", train)):
            call()
            for _ in range(self.args.steps):
                self.steps[name].append(_seconds(call))

    def result(self) -> dict[str, float]:
        """Ratios and the ceiling."""
        whole = {who: {p: sum(times) for p, times in parts.items()} for who, parts in self.times.items()}
        step = {name: statistics.median(times) for name, times in self.steps.items()}
        epochs = self.args.trials * self.args.epochs
        baseline = epochs * (step["teacher"] + step["student"])
        ceiling = baseline / (epochs * step["student"] + self.args.epochs * step["teacher"])
        ratio = whole["baseline"]["training"] / whole["akd"]["training"]
        pairs = zip(self.times["baseline"]["training"], self.times["akd"]["training"], strict=True)
        return {
            **{f"{who} {part}": whole[who][part] for who in whole for part in PARTS},
            "teacher step": step["teacher"],
            "student step": step["student"],
            "ratio": ratio,
            "median ratio": statistics.median(b / a for b, a in pairs),
            "ceiling": ceiling,
            "share": ratio / ceiling,
            "whole ratio": sum(whole["baseline"].values()) / sum(whole["akd"].values()),
        }


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def show(pair: tuple[str, str], found: dict[str, float], trials: int) -> None:
    """Print one pair's table."""
    print(f"{pair[0]} -> {pair[1]}: {'training':>12} {'evaluation':>12} {'fixed':>12}   seconds, {trials} trials")
    for who in ("baseline", "akd"):
        print(f"  {who:<16}" + "".join(f"{found[f'{who} {part}']:13.1f}" for part in PARTS))
    print(
        f"  training ratio {found['ratio']:.2f} (median of trials {found['median ratio']:.2f}), ceiling "
        f"{found['ceiling']:.2f} from steps of {1000 * found['teacher step']:.0f} ms teacher and "
        f"{1000 * found['student step']:.0f} ms student, share {found['share']:.2f}; whole trials "
        f"{found['whole ratio']:.2f}",
        flush=True,
    )


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("pairs", nargs="*", default=[":".join(p) for p in PAIRS[:2]])
    found.add_argument("--data-dir", help="folder with CIFAR-100; default $AKD_DATA, else random images")
    found.add_argument("--trials", type=int, default=16)
    found.add_argument("--epochs", type=int, default=2)
    found.add_argument("--images", type=int, default=2000)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--workers", type=int, default=0, help="processes of the baseline's DataLoader")
    found.add_argument("--cache", choices=["on", "off"], default="on", help="off: akd runs the teacher in every step")
    found.add_argument("--steps", type=int, default=4, help="of teacher and student alone, before each trial")
    return found


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure the pairs asked for."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    folder, results = data_folder(args.data_dir), {}
    sys.path.insert(0, str(Path(__file__).parent))  # where the stand-in's reader is found
    print(f"images: {describe_data(folder)}; {args.threads} threads, the DataLoader has {args.workers} workers")
    for text in args.pairs:
        teacher, _, student = text.partition(":")
        with tempfile.TemporaryDirectory() as scratch:
            study = Study((teacher, student), args, folder, Path(scratch))
            study.measure()
        results[text] = study.result()
        show((teacher, student), results[text], args.trials)
    return results


if __name__ == "__main__":
    main()
