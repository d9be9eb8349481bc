"""The short form of every benchmark, one after the other, and one table of what they found.

    make bench          or: .venv/bin/python tests/benchmarks/bench.py [--data-dir DIR] [--threads 1] [--only NAME ...]

CIFAR-100 is read from ``--data-dir`` or ``$AKD_DATA``; without it images are random, which changes no time. Figures of
the short form scatter by some per cent, more on a machine that others use: each script by itself measures longer, and
its docstring says what its columns mean. Columns here: what was measured, what was found, the floor that the machine
sets (where one can be computed) and the bar, where there is one.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cached_step
import memory
import search_cost
import study_speed
import throughput
import torch
import trial_cost

Row = tuple[str, str, str, str]


def steps(args: argparse.Namespace) -> list[Row]:
    """What the teacher and the methods add to a step, cache on and off."""
    rows = []
    for pair, methods in cached_step.main(["--rounds", "5", "--steps", "4", "--threads", str(args.threads)]).items():
        for name, row in methods.items():
            target = cached_step.TARGETS.get((pair.partition(":")[2], name))
            found = f"{row['cached']:.3f} of the plain step, teacher live {row['live']:.3f}"
            rows.append((f"step, {pair}, {name}, cached", found, "1", f"at most {target:.2f}" if target else ""))
        rows.append((f"reading a cached pass, {pair}", f"{methods['kd']['reading']:.2%} of its epoch", "", "under 2 %"))
        found = f"{methods['kd']['writing'] - 1:.1%} on top of the forward passes"
        rows.append((f"writing a pass, {pair}", found, "", "under 5 %"))
    return rows


def images(args: argparse.Namespace) -> list[Row]:
    """Images per second against the usual loop."""
    short = ["--rounds", "3", "--steps", "4", "--threads", str(args.threads), *args.data]
    rows = []
    for pair, row in throughput.main(short).items():
        for name in ("live", "alone"):
            found = f"{row[name]:.0f} images/s, {row[f'{name} ratio']:.2f} of the usual loop's {row['baseline']:.0f}"
            rows.append(
                (
                    f"loop, {pair}, teacher {'live' if name == 'live' else 'asked before'}",
                    found,
                    f"{row[f'{name} floor']:.0f} images/s",
                    "",
                )
            )
    return rows


def study(args: argparse.Namespace) -> list[Row]:
    """A study against runs of the usual loop."""
    short = ["--trials", "4", "--images", "512", "--threads", str(args.threads), *args.data]
    bars = {"resnet32x4:resnet8x4": "at least 1.9", "wrn_40_2:wrn_16_2": "at least 1.4"}
    return [
        (
            f"4 trials, {pair}",
            f"{row['ratio']:.2f} times faster than the usual loop, {row['share']:.2f} of the ceiling",
            f"{row['ceiling']:.2f} times",
            f"16 trials: {bars.get(pair, '')}, 0.85",
        )
        for pair, row in study_speed.main(short).items()
    ]


def trials(args: argparse.Namespace) -> list[Row]:
    """Fixed costs of trials."""
    return [
        (f"fixed cost per trial, {name}", f"{row['each']:.2f} s, of the first {row['first']:.1f} s", "", "")
        for name, row in trial_cost.main(["--trials", "3"]).items()
    ]


def peaks(args: argparse.Namespace) -> list[Row]:
    """Peak memory of training processes."""
    found = memory.main(["--steps", "3", "wrn_40_2:wrn_16_2", *args.data])
    return [(f"peak memory, {name}", f"{row['process'] / 1e6:.0f} MB", "", "") for name, row in found.items()]


def search(args: argparse.Namespace) -> list[Row]:
    """Time and memory of the search that ``make search`` runs."""
    return [(f"make search: {name}", value, "", "") for name, value in search_cost.measure([])]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "steps": steps,
    "images": images,
    "study": study,
    "trials": trials,
    "memory": peaks,
    "search": search,
}


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with CIFAR-100; default $AKD_DATA, else random images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="repeatable; default all")
    args = parser.parse_args()
    args.data = ["--data-dir", str(Path(args.data_dir).absolute())] if args.data_dir else []
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.only or PARTS:
        began = time.monotonic()
        print(f"\n== {name}", flush=True)
        rows += PARTS[name](args)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    load = os.getloadavg()[0]
    print(
        f"\ntorch {torch.__version__}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, "
        f"load {load:.1f}, {args.threads} threads a step"
    )
    head: Row = ("what", "found", "floor", "bar")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
