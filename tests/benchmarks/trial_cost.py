"""What a trial costs besides its training: in one process, through Tune, and through Ray Train.

    .venv/bin/python tests/benchmarks/trial_cost.py [--trials 6] [--workers 2]

Trials are small on purpose (300 digits, ResNet-8, two epochs), so that the rest shows. ``loop alone`` calls what Tune's
worker calls, in this process. The other rows are searches of their own, one trial at a time: ``each`` is the median
time between two ends less what the later trial trained, ``most`` the largest, ``first`` what the first trial took
besides training before its first epoch was kept, ``start`` everything before it (imports, Ray, the teacher), ``end``
everything after the last trial (final runs, result). Ray Train is used as soon as a trial has several workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from akd import folder as run_folder
from akd.config import load
from akd.folder import Run
from akd.job import Job, run_job

SPACE = """\
data: {name: digits, validation: 0.1, subset: 300}
teacher: {name: wrn_16_1, train: {epochs: 1, lr: 0.05}}
student: resnet8
method: kd
train: {epochs: 2, batch_size: 64, lr: 0.05, threads: 1}
search: {scheduler: none, concurrent: 1, champion_seeds: 1, final_workers: 1, log_checkpoints: none}
space:
  train.lr: {type: float, low: 0.01, high: 0.1, log: true}
"""


def training(folder: Path) -> float:
    """Seconds a run trained."""
    return sum(entry["time/epoch_s"] for entry in run_folder.history(folder))


def in_loop(study: Path, teacher: Path, trials: int) -> tuple[float, float]:
    """Seconds of the first trial and median of the others, without training, as Tune's worker makes them."""
    experiment = load(study / "experiment.yaml", {}, strict=False)
    rest = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(trials):
            began, where = time.perf_counter(), Path(scratch) / str(number)
            run_folder.create(where, experiment, Run("trial", f"trial {number}", number))
            run_job(Job(str(where), str(teacher)))
            rest.append(time.perf_counter() - began - training(where))
    return rest[0], statistics.median(rest[1:])


def searched(workers: int, trials: int, scratch: Path) -> tuple[Path, dict[str, float]]:
    """The folder of a search, and its seconds by name."""
    name = f"workers{workers}"
    (scratch / "space.yaml").write_text(SPACE, encoding="utf-8")
    command = [sys.executable, "-m", "akd.cli", "search", "space.yaml", "--name", name, "--trials", str(trials)]
    command += ["--workers-per-trial", str(workers)]
    began = time.time()
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    whole, study = time.time() - began, scratch / "runs" / name
    runs = {
        p.parent: json.loads(p.read_text())
        for p in [*study.glob("trials/*/run.json"), *study.glob("controls/*/run.json")]
    }
    order = sorted(runs, key=lambda path: runs[path]["ended"])
    ends = [runs[path]["ended"] for path in order]
    each = [later - sooner - training(path) for sooner, later, path in zip(ends, ends[1:], order[1:], strict=False)]
    first = run_folder.history(order[0])[0]
    return study, {
        "start": runs[order[0]]["started"] - began,
        "first": first["at"] - runs[order[0]]["started"] - first["time/epoch_s"],
        "each": statistics.median(each),
        "most": max(each),
        "end": began + whole - ends[-1],
        "whole": whole,
    }


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2, help="of a trial, through Ray Train")
    args = parser.parse_args(arguments)
    found: dict[str, dict[str, float]] = {}
    print(f"{'seconds':<28} {'start':>8} {'first':>8} {'each':>8} {'most':>8} {'end':>8} {'whole':>8}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for title, workers in (("Tune, in process", 1), (f"Ray Train, {args.workers} workers", args.workers)):
            study, row = searched(workers, args.trials, Path(scratch))
            if workers == 1:
                (teacher,) = (p for p in (Path(scratch) / "runs" / "teachers").iterdir() if p.is_dir())
                first, each = in_loop(study, teacher, args.trials)
                found["loop"] = {"first": first, "each": each}
                print(f"{'loop alone':<28} {'':>8} {first:8.2f} {each:8.2f}", flush=True)
            found[title] = row
            print(f"{title:<28}" + "".join(f" {row[k]:8.2f}" for k in row), flush=True)
    return found


if __name__ == "__main__":
    main()
