"""What every method adds to a student's step, the teacher's outputs given: one row a method, taken from the registry.

    .venv/bin/python tests/benchmarks/method_step.py [--only WORD ...] [--threads 1] [--rounds 25] [--device cpu]
                                                     [--clock wall] [STUDENT ...]

For each student the training loop's own epoch runs in turn with hard labels only and with every method at its defaults;
what is printed are medians of the rounds' ratios to the plain step. A host whose settings name several forms has a row
for each, views stand over plain KD, and the last rows are compositions. Images are random, 32x32, 64 a step, 100
classes, and count as a file of 50,000. Loss, backward pass, optimizer and metrics are in the figures; the teacher's
forward pass is not: its outputs, stage maps before and after the ReLU among them, are made once. A method that asks for
attention gets it as a cache would keep it, one channel a stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from akd.allocation import keep_freed_memory
from akd.config import Experiment, resolve
from akd.data import Batch, TrainData
from akd.data.augment import Augment
from akd.data.dataset import Dataset
from akd.data.loader import DeviceLoader
from akd.epochs import train_epoch
from akd.errors import ExperimentError
from akd.fit import shapes_of
from akd.methods import create_method, hosts, views
from akd.models import list_models, seeded_model
from akd.models.layout import channels_last, to_train
from akd.state import TrainState
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.world import ALONE

CLASSES, BATCH, IMAGES = 100, 64, 50_000

#: Student -> (its usual teacher, forms of Angular-KD's heads worth a look).
STUDENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wrn_16_2": ("wrn_40_2", ("full",)),
    "resnet8x4": ("resnet32x4", ("full",)),
    "MobileNetV2": ("ResNet50", ("full", "low_rank", "projected")),
}
#: Most that the step may take, relative to the plain one: by row, or by student and row.
TARGETS: dict[Any, float] = {
    "kd": 1.03,
    "dkd": 1.03,
    "dist": 1.03,
    "amd": 1.03,
    "crd, form batch": 1.10,
    ("wrn_16_2", "angular_kd, head full"): 1.08,
    ("resnet8x4", "angular_kd, head full"): 1.06,
    ("MobileNetV2", "angular_kd, head projected"): 1.3,
}


class Given:
    """A source that has its answer."""

    asked = made = 0

    def __init__(self, output: Any):
        self.output = output

    def __call__(self, images: Tensor, batch: Batch) -> Any:
        return self.output


class GivenTeacher:
    """Outputs that cost nothing: what a cached teacher would be, with the maps as well."""

    def __init__(self, name: str, device: torch.device):
        images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        net = channels_last(seeded_model(name, CLASSES, 0).to(device), images[:1])
        live = LiveTeacher(net, frozenset({"logits", "embedding", "maps", "maps_preact:-1"}))
        self.first = live.probe(images[:1])
        self.output = live(images, None)  # type: ignore[arg-type]  # a live teacher looks at the images alone
        maps = tuple(m.square().sum(1, keepdim=True).sqrt() for m in self.output.maps)
        self.attention = self.output._replace(maps=maps)

    def to(self, needs: frozenset[str]) -> Callable[[Tensor, Batch], Any]:
        """What gives a method of these needs its outputs."""
        given = self.attention if any(n.startswith("attention") for n in needs) else self.output
        return Given(given)

    def probe(self, image: Tensor) -> Any:
        return self.first


def random_images(steps: int) -> TrainData:
    """A data set of random images: ``steps`` full batches."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH * steps, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (BATCH * steps,), generator=draw)
    names = tuple(map(str, range(CLASSES)))
    whole = Dataset("random", images, labels, images[:1], labels[:1], names, (0.5,) * 3, (0.25,) * 3)
    return TrainData(whole, torch.arange(len(images)), torch.arange(0), Augment(padding=4, flip=True))


def forms(name: str) -> dict[str, dict[str, Any]]:
    """A host at its defaults, and with every other value of a setting that names forms: row -> settings."""
    found: dict[str, dict[str, Any]] = {}
    config = hosts.info(name)["config"]
    named = [f for f in dataclasses.fields(config) if f.name != "name" and f.metadata.get("choices")]
    found[", ".join([name, *(f"{f.name} {f.default}" for f in named)])] = {}
    for field in named:
        for choice in field.metadata["choices"]:
            if choice != field.default:
                found[f"{name}, {field.name} {choice}"] = {field.name: choice}
    return found


def methods(heads: tuple[str, ...]) -> dict[str, Any]:
    """What is compared, by row; ``none`` comes first."""
    found: dict[str, Any] = {"none": "none"}
    for name in hosts.names():
        if name != "none":
            found |= {row: {"host": {"name": name, **settings}} for row, settings in forms(name).items()}
    for name in views.names():
        rows = {f"{name}, head {head}": {"count": 5, "head": head} for head in heads}
        for row, settings in rows.items() if name == "angular_kd" else [(name, {})]:
            found[row] = {"host": "kd", "views": {"name": name, **settings}}
    return found | {
        "kd, standardised": {"host": {"name": "kd", "standardise": True}},
        "kd, normalised": {"host": "kd", "normalise": True},
        "dkd + dist": {"host": "dkd", "extra": ["dist"]},
    }


def build(method: Any, student: str, source: GivenTeacher, data: TrainData, device: torch.device) -> tuple[Any, ...]:
    """State, loader and teacher of one row."""
    experiment: Experiment = resolve({"method": method, "student": student, "train": {"lr": 0.01, "ema": 0}})
    image = torch.zeros(1, 3, 32, 32, device=device)
    net = to_train(seeded_model(student, CLASSES, 0).to(device))
    shapes = shapes_of(net, image, source, CLASSES, IMAGES)
    built = create_method(experiment.method, shapes).to(device)
    loader = DeviceLoader(data, batch_size=BATCH, seed=0, plan_seed=0, device=device, dtype=torch.float32, world=ALONE)
    state = TrainState(experiment.train, net, built, device)
    given: Any = source.to(experiment.method.needs) if experiment.method.needs else None
    return state, loader, Stepper(net, built, given, world=ALONE, amp=device.type == "cuda")


def compare(student: str, only: list[str], rounds: int, steps: int, device: torch.device, clock: str = "wall") -> None:
    """Measure one student and print its rows.

    Args:
        clock: "wall" or "cpu".
    """
    teacher, heads = STUDENTS[student]
    data, source = random_images(steps), GivenTeacher(teacher, device)
    chosen = {
        row: method
        for row, method in methods(heads).items()
        if row == "none" or not only or any(word in row for word in only)
    }
    runs = {}
    for row, method in chosen.items():
        try:
            runs[row] = build(method, student, source, data, device)
        except ExperimentError as error:
            print(f"{student:<12} {teacher:<11} {row:<28} left out: {error}", flush=True)
    seconds: dict[str, list[float]] = {row: [] for row in runs}
    for epoch in range(1, rounds + 2):  # the first round warms up
        for row, (state, loader, stepper) in runs.items():
            began = time.process_time()
            metrics = train_epoch(state, loader, stepper, epoch)
            used = time.process_time() - began
            if epoch > 1:
                seconds[row].append((used if clock == "cpu" else metrics["time/epoch_s"]) / steps)
    for row, times in seconds.items():
        ratios = sorted(t / plain for t, plain in zip(times, seconds["none"], strict=True))
        target = TARGETS.get((student, row), TARGETS.get(row))
        wanted = f"  (at most {target:.2f})" if target else ""
        print(
            f"{student:<12} {teacher:<11} {row:<28} {1000 * statistics.median(times):8.1f} ms "
            f"{statistics.median(ratios):6.3f}  {ratios[0]:.3f} to {ratios[-1]:.3f}{wanted}",
            flush=True,
        )


def main() -> None:
    """Measure the students asked for, those that this installation has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="rows that hold this; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=1, help="of each in turn; few on a machine that others use")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that others use")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()
    print(f"{'student':<12} {'of':<11} {'method':<28} {'step':>11} {'ratio':>6}  range of {args.rounds} rounds")
    for student in args.students:
        if student in list_models() and STUDENTS[student][0] in list_models():
            compare(student, args.only, args.rounds, args.steps, torch.device(args.device), clock=args.clock)
        else:
            print(f"{student:<12} or its teacher is no network of this installation: left out")


if __name__ == "__main__":
    main()
