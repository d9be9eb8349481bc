"""What a teacher costs in a step: run live, found in the cache, or given for nothing; and what the cache itself costs.

    .venv/bin/python tests/benchmarks/cached_step.py [--threads 1] [--rounds 9] [--steps 8] [--fill 1024]
                                                     [--clock wall] [--device cpu] [TEACHER:STUDENT ...]

The training loop's own epoch of ``--steps`` steps runs in turn with hard labels only and with each method, its teacher
live, cached (every epoch found on disk) and given; printed are medians of the rounds' ratios to the plain step, which
is what training the bare student costs. ``reading`` is the share of an epoch spent on finding, mapping and reading what
is kept; ``writing`` is what a pass of ``--fill`` images costs, once, over the teacher's forward passes in it. Both are
dearer here than in a real epoch, which has the same fixed costs and hundreds of steps. Images are random, 32x32, 64 a
step, 100 classes. ``--clock cpu`` counts the process's own seconds, for a machine that others use.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baseline import PAIRS, calibrated
from method_step import BATCH, CLASSES, GivenTeacher, random_images
from torch import nn

from akd.allocation import keep_freed_memory
from akd.config import resolve
from akd.data import TrainData
from akd.data.loader import DeviceLoader
from akd.epochs import train_epoch
from akd.fit import _networks
from akd.models import seeded_model
from akd.models.layout import channels_last
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.world import ALONE

METHODS: dict[str, Any] = {"kd": "kd", "angular_kd": {"host": "kd", "views": {"name": "angular_kd", "count": 5}}}
#: Most that a step with a warm cache may take, relative to the plain one.
TARGETS = {
    **{(student, "kd"): 1.03 for _, student in PAIRS},
    ("resnet8x4", "angular_kd"): 1.06,
    ("wrn_16_2", "angular_kd"): 1.08,
}
CLOCK = [time.perf_counter]
NEEDS = frozenset({"logits", "embedding"})


class Timed:
    """A source that notes the seconds spent in it."""

    def __init__(self, source: Any):
        self.source, self.seconds = source, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __call__(self, *arguments: Any) -> Any:
        return self._timed(self.source, *arguments)

    def before(self, *arguments: Any, **options: Any) -> None:
        """As the source's own."""
        self._timed(self.source.before, *arguments, **options)

    def _timed(self, call: Any, *arguments: Any, **options: Any) -> Any:
        began = CLOCK[0]()
        result = call(*arguments, **options)
        self.seconds += CLOCK[0]() - began
        return result


class Given(GivenTeacher):
    """Outputs for nothing, as the loop asks for them."""

    asked = made = 0

    def __call__(self, images: Any, batch: Any) -> Any:
        return self.output

    def before(self, view: Any, amp: bool) -> None:
        """Nothing to prepare."""


def parts(method: Any, student: str, source: Any, data: TrainData, device: torch.device) -> tuple[Any, ...]:
    """State, loader and stepper of one row; every epoch has the first one's images."""
    e = resolve({"method": method, "student": student, "train": {"lr": 0.01, "ema": 0}})
    loader = DeviceLoader(
        data, batch_size=BATCH, seed=0, plan_seed=0, device=device, dtype=torch.float32, world=ALONE, repeat=1
    )
    state, built = _networks(e, data, source, loader, ALONE)
    if source is not None:
        loader.before = partial(source.before, amp=device.type == "cuda")
    return state, loader, Stepper(state.student, built, source, world=ALONE, amp=device.type == "cuda")


def writing(model: nn.Module, student: str, data: TrainData, device: torch.device, folder: Path) -> float:
    """Seconds of filling a pass over those of the teacher's forward passes in it."""
    forward, began = [0.0], [0.0]

    def leave(*_: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        forward[0] += CLOCK[0]() - began[0]

    source = CachedTeacher(model, NEEDS, Store(folder, 1 << 33), keep=NEEDS)
    _, loader, _ = parts("kd", student, source, data, device)
    handles = [
        model.register_forward_pre_hook(lambda *_: began.__setitem__(0, CLOCK[0]())),
        model.register_forward_hook(leave),
    ]
    start = CLOCK[0]()
    for _ in loader.epoch(1):
        break  # the pass is filled before its first step
    whole = CLOCK[0]() - start
    for handle in handles:
        handle.remove()
    return whole / forward[0]


def compare(pair: tuple[str, str], args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Measure one pair and print its rows: ratios by method, and what the cache costs."""
    device, data = torch.device(args.device), random_images(args.steps)
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    model = channels_last(calibrated(seeded_model(pair[0], CLASSES, 1).to(device), images), images[:1])
    fill = random_images(args.fill // BATCH)
    cost = statistics.median(writing(model, pair[1], fill, device, folder / f"cost{i}") for i in range(3))
    runs: dict[tuple[str, str], tuple[Any, ...]] = {("none", "plain"): parts("none", pair[1], None, data, device)}
    sources = {}
    for name, method in METHODS.items():
        cached = CachedTeacher(model, NEEDS, Store(folder, 1 << 33), keep=NEEDS)
        sources[name] = Timed(cached)
        for how, source in (("live", LiveTeacher(model)), ("cached", sources[name]), ("given", Given(pair[0], device))):
            runs[name, how] = parts(method, pair[1], source, data, device)
    next(iter(runs["kd", "cached"][1].epoch(1)))  # kept from here on
    for source in sources.values():
        source.source.made = 0
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    shares: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(1, args.rounds + 2):  # the first round warms up
        for key, (state, loader, stepper) in runs.items():
            before = sources[key[0]].seconds if key[1] == "cached" else 0.0
            began = CLOCK[0]()
            train_epoch(state, loader, stepper, number)
            took = CLOCK[0]() - began
            if number > 1:
                seconds[key].append(took)
                if key[1] == "cached":
                    shares[key[0]].append((sources[key[0]].seconds - before) / took)
    assert all(source.made == 0 for source in sources.values()), "the cache was not warm"
    found = {}
    for name in METHODS:
        row = {
            how: statistics.median(a / b for a, b in zip(seconds[name, how], seconds["none", "plain"], strict=True))
            for how in ("live", "cached", "given")
        }
        row |= {"reading": statistics.median(shares[name]), "writing": cost}
        target = TARGETS.get((pair[1], name))
        plain = 1000 * statistics.median(seconds["none", "plain"]) / args.steps
        print(
            f"{pair[0] + ' -> ' + pair[1]:<26} {name:<11} {plain:8.1f} ms {row['live']:7.3f} {row['cached']:7.3f} "
            f"{row['given']:7.3f} {row['reading']:8.2%} {row['writing']:8.3f}"
            + (f"  (cached at most {target:.2f})" if target else ""),
            flush=True,
        )
        found[name] = row
    return found


def main(arguments: list[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the pairs asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=[":".join(p) for p in PAIRS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="of each in turn")
    parser.add_argument("--fill", type=int, default=1024, help="images of the pass whose writing is timed")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    CLOCK[0] = time.process_time if args.clock == "cpu" else time.perf_counter
    if args.device == "cpu":
        keep_freed_memory()
    print(f"{'':<26} {'method':<11} {'plain':>11} {'live':>7} {'cached':>7} {'given':>7} {'reading':>8} {'writing':>8}")
    found = {}
    for text in args.pairs:
        teacher, _, student = text.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            found[text] = compare((teacher, student), args, Path(folder))
    return found


if __name__ == "__main__":
    main()
