"""What Angular-KD's heads and losses add to a student's step: five views, the teacher's outputs given.

    .venv/bin/python tests/benchmarks/angular_step.py [--threads 1] [--rounds 25] [--device cpu] [STUDENT ...]

For each student the training loop's own epoch runs in turn with hard labels only, with plain KD and with each form of
head; what is printed are medians of the rounds' ratios to the plain step. Images are random, 32x32, 64 a step, 100
classes; loss, backward pass, optimizer and metrics are in the figures, the teacher's forward pass is not.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from akd.config import Experiment, resolve
from akd.data import Batch, TrainData
from akd.data.augment import Augment
from akd.data.dataset import Dataset
from akd.data.loader import DeviceLoader
from akd.fit import TrainState, _train_epoch, shapes_of
from akd.methods import create_method
from akd.models import Output, list_models, seeded_model
from akd.step import Stepper
from akd.world import ALONE

CLASSES, BATCH = 100, 64

#: Student -> (its usual teacher, width of that teacher's embedding, forms of head worth a look).
STUDENTS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "wrn_16_2": ("wrn_40_2", 128, ("full",)),
    "resnet8x4": ("resnet32x4", 256, ("full",)),
    "MobileNetV2": ("ResNet50", 2048, ("full", "low_rank", "projected")),
}
#: Most that the step may take, relative to the plain one.
TARGETS = {
    ("wrn_16_2", "full"): 1.08,
    ("resnet8x4", "full"): 1.06,
    ("MobileNetV2", "low_rank"): 1.3,
    ("MobileNetV2", "projected"): 1.3,
}


class GivenTeacher:
    """Outputs that cost nothing: what a cached teacher would be."""

    def __init__(self, width: int, device: torch.device):
        draw = torch.Generator().manual_seed(0)
        embedding = torch.rand(BATCH, width, generator=draw).to(device)
        self.output = Output((3 * torch.randn(BATCH, CLASSES, generator=draw)).to(device), embedding)

    def __call__(self, images: Tensor, batch: Batch) -> Output:
        return self.output

    def probe(self, image: Tensor) -> Output:
        return Output(self.output.logits[:1], self.output.embedding[:1])


def random_images(steps: int) -> TrainData:
    """A data set of random images: ``steps`` full batches."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH * steps, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (BATCH * steps,), generator=draw)
    names = tuple(map(str, range(CLASSES)))
    whole = Dataset("random", images, labels, images[:1], labels[:1], names, (0.5,) * 3, (0.25,) * 3)
    return TrainData(whole, torch.arange(len(images)), torch.arange(0), Augment(padding=4, flip=True))


def methods(heads: tuple[str, ...]) -> dict[str, Any]:
    """What is compared, by name."""
    views = {f"angular_kd, {head} heads": {"name": "angular_kd", "count": 5, "head": head} for head in heads}
    return {"none": "none", "kd": "kd"} | {name: {"host": "kd", "views": v} for name, v in views.items()}


def compare(student: str, rounds: int, steps: int, device: torch.device) -> None:
    """Measure one student and print its rows."""
    teacher, width, heads = STUDENTS[student]
    data, source = random_images(steps), GivenTeacher(width, device)
    dtype, amp = torch.float32, device.type == "cuda"
    runs = {}
    for name, method in methods(heads).items():
        experiment: Experiment = resolve({"method": method, "student": student, "train": {"lr": 0.01}})
        net = seeded_model(student, CLASSES, 0).to(device)
        shapes = shapes_of(net, torch.zeros(1, 3, 32, 32, device=device), source, CLASSES)
        built = create_method(experiment.method, shapes).to(device)
        loader = DeviceLoader(data, batch_size=BATCH, seed=0, plan_seed=0, device=device, dtype=dtype, world=ALONE)
        state = TrainState(experiment.train, net, built, device)
        given = source if experiment.method.needs else None
        runs[name] = (state, loader, Stepper(net, built, given, world=ALONE, amp=amp))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(1, rounds + 2):  # the first round warms up
        for name, (state, loader, stepper) in runs.items():
            metrics = _train_epoch(state, loader, stepper, epoch)
            if epoch > 1:
                seconds[name].append(metrics["time/epoch_s"] / steps)
    for name, times in seconds.items():
        ratios = sorted(t / plain for t, plain in zip(times, seconds["none"], strict=True))
        target = TARGETS.get((student, name.removeprefix("angular_kd, ").removesuffix(" heads")))
        wanted = f"  (at most {target})" if target else ""
        print(
            f"{student:<12} {teacher:<11} {name:<28} {1000 * statistics.median(times):8.1f} ms "
            f"{statistics.median(ratios):6.3f}  {ratios[0]:.3f} to {ratios[-1]:.3f}{wanted}",
            flush=True,
        )


def main() -> None:
    """Measure the students asked for, those that this installation has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=1, help="of each in turn; few on a machine that others use")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'student':<12} {'of':<11} {'method':<28} {'step':>11} {'ratio':>6}  range of {args.rounds} rounds")
    for student in args.students:
        if student in list_models():
            compare(student, args.rounds, args.steps, torch.device(args.device))
        else:
            print(f"{student:<12} is no network of this installation: left out")


if __name__ == "__main__":
    main()
