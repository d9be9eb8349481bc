"""Images per second of akd's training loop against the loop everybody uses, plain distillation, in turn in one run.

    .venv/bin/python tests/benchmarks/throughput.py [--data-dir DIR] [--threads 1] [--workers 0] [--rounds 7]
                                                    [--steps 12] [--device cpu] [TEACHER:STUDENT ...]

The baseline stands in ``baseline.py``: torchvision's CIFAR100, per-image transforms in a DataLoader of ``--workers``
processes, a teacher that runs on every batch, float32, batches of 64. Each round trains ``--steps`` steps of both, one
after the other; printed are medians, of the ratio the median of the rounds' own ratios. ``live`` is akd's loop with the
teacher run on every batch too, ``alone`` the same loop with hard labels only, which is what a teacher that was asked
before leaves to do. Building networks, reading files and evaluation are in neither figure. ``floor`` is the arithmetic
of teacher and student (of the student alone for ``alone``) at the rate of a large matrix product, see ``floor.py``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import torch
from baseline import BATCH, CLASSES, PAIRS, Loop, akd_dataset, data_folder, describe_data
from floor import Machine, describe, forward, machine, training

from akd.config import resolve
from akd.data import TrainData
from akd.data.dataset import Dataset
from akd.fit import fit
from akd.models import seeded_model
from akd.models.layout import channels_last
from akd.teacher import LiveTeacher


def akd_seconds(
    data: TrainData, student: str, source: LiveTeacher | None, device: torch.device, threads: int, seed: int
) -> float:
    """Seconds of an epoch of akd's loop; the first round's student is trained anew in every round."""
    train = {"epochs": 1, "batch_size": BATCH, "lr": 0.05, "nesterov": True, "ema": 0, "threads": threads}
    settings = {**train, "seed": seed, "plan_seed": seed}
    method = "kd" if source is not None else "none"
    experiment = resolve({"method": method, "student": student, "train": settings})
    return fit(experiment, data, source, device=device).history[-1]["time/epoch_s"]


def compare(
    pair: tuple[str, str], dataset: Dataset, folder: Path | None, on: Machine, args: argparse.Namespace
) -> dict[str, float]:
    """Measure one pair and print its row; images per second by name, and ratios."""
    device, count = torch.device(args.device), args.steps * BATCH
    rows = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(0))[:count].sort().values
    data = TrainData(dataset, rows, rows[:0], dataset.augment)
    teacher = seeded_model(pair[0], CLASSES, 1).to(device)
    student = seeded_model(pair[1], CLASSES, 0).to(device)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=device), torch.zeros(BATCH, dtype=torch.long, device=device)
    step = on.arithmetic(training(seeded_model(pair[1], CLASSES, 0).to(device), images, labels))
    floors = {"live": on.arithmetic(forward(teacher, images)) + step, "alone": step}
    loop = Loop(student, teacher, rows, folder, workers=args.workers, device=device)
    source = LiveTeacher(channels_last(copy.deepcopy(teacher), images[:1]))  # as akd loads its teachers
    times: dict[str, list[float]] = {"baseline": [], "live": [], "alone": []}
    for seed in range(args.rounds + 1):  # the first round warms up
        found = {
            "baseline": loop.timed_epoch(),
            "live": akd_seconds(data, pair[1], source, device, args.threads, seed),
            "alone": akd_seconds(data, pair[1], None, device, args.threads, seed),
        }
        for name, seconds in found.items():
            times[name] += [seconds] if seed else []
    row = {name: count / statistics.median(seconds) for name, seconds in times.items()}
    for name in ("live", "alone"):
        ratios = [b / a for a, b in zip(times[name], times["baseline"], strict=True)]
        row[f"{name} ratio"] = statistics.median(ratios)
        row[f"{name} floor"] = BATCH / floors[name]
    print(
        f"{pair[0] + ' -> ' + pair[1]:<26} {row['baseline']:9.0f} {row['live']:9.0f} {row['live ratio']:6.2f} "
        f"{row['live floor']:8.0f} {row['alone']:9.0f} {row['alone ratio']:6.2f} {row['alone floor']:8.0f}",
        flush=True,
    )
    return row


def parser() -> argparse.ArgumentParser:
    """The arguments, with the short form's in reach of ``bench.py``."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("pairs", nargs="*", default=[":".join(p) for p in PAIRS])
    found.add_argument("--data-dir", help="folder with CIFAR-100; default $AKD_DATA, else random images")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--workers", type=int, default=0, help="processes of the baseline's DataLoader")
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--steps", type=int, default=12, help="of each in turn")
    found.add_argument("--device", default="cpu")
    return found


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure the pairs asked for."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    folder = data_folder(args.data_dir)
    dataset, on = akd_dataset(folder), machine(torch.device(args.device))
    print(f"images: {describe_data(folder)}; the DataLoader has {args.workers} workers")
    print(describe(on, torch.device(args.device)))
    print(f"{'images per second':<26} {'baseline':>9} {'live':>9} {'ratio':>6} {'floor':>8} ", end="")
    print(f"{'alone':>9} {'ratio':>6} {'floor':>8}", flush=True)
    pairs = [tuple(pair.split(":")) for pair in args.pairs]
    return {f"{t}:{s}": compare((t, s), dataset, folder, on, args) for t, s in pairs}


if __name__ == "__main__":
    main()
