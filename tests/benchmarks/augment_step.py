"""What a policy adds to a step: the images alone, and a whole step of plain distillation with a live teacher.

    .venv/bin/python tests/benchmarks/augment_step.py [--threads 1] [--rounds 25] [--steps 4] [--device cpu]

Images are random, 32x32, 64 a step, 100 classes; WRN-40-2 to WRN-16-2 unless others are named. Every form runs in
turn; what is printed are medians over the rounds, and the medians of the rounds' ratios to the step without a policy.
A second view doubles the rows of both networks, so about twice the step is what it has to cost; picking adds the
scorers' passes over the pool.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from method_step import BATCH, CLASSES, random_images

from akd.config import resolve
from akd.data.loader import DeviceLoader
from akd.data.policies import augments, create_policy
from akd.epochs import train_epoch
from akd.fit import _scorer, shapes_of
from akd.methods import create_method
from akd.models import seeded_model
from akd.state import TrainState
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.world import ALONE


def forms() -> dict[str, Any]:
    """What is compared: settings of ``method.augment`` by name."""
    both = {f"{name}, {form}": {"name": name, "form": form} for name in augments.names() for form in ("second", "only")}
    return {"none": None} | both


def main() -> None:
    """Measure every policy in both forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=4, help="of each form in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--teacher", default="wrn_40_2")
    parser.add_argument("--student", default="wrn_16_2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    data, amp = random_images(args.steps), device.type == "cuda"
    source = LiveTeacher(seeded_model(args.teacher, CLASSES, 1).to(device))
    runs = {}
    for name, augment in forms().items():
        e = resolve(
            {"method": {"host": "kd", "augment": augment}, "student": args.student, "train": {"lr": 0.01, "ema": 0}}
        )
        net = seeded_model(args.student, CLASSES, 0).to(device)
        shapes = shapes_of(net, torch.zeros(1, 3, 32, 32, device=device), source, CLASSES)
        method = create_method(e.method, shapes).to(device)
        state = TrainState(e.train, net, method, device)
        loader = DeviceLoader(
            data,
            batch_size=BATCH,
            seed=0,
            plan_seed=0,
            device=device,
            dtype=torch.float32,
            world=ALONE,
            policy=create_policy(e.method.augment, data),
        )
        loader.score = _scorer(loader, state, source, amp)
        runs[name] = (state, loader, Stepper(net, method, source, world=ALONE, amp=amp))
    images: dict[str, list[float]] = {name: [] for name in runs}
    whole: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(1, args.rounds + 2):  # the first round warms up
        for name, (state, loader, stepper) in runs.items():
            began = time.perf_counter()
            for _ in loader.epoch(epoch):
                pass
            if amp:
                torch.cuda.synchronize()
            alone = (time.perf_counter() - began) / args.steps
            step = train_epoch(state, loader, stepper, epoch)["time/epoch_s"] / args.steps
            if epoch > 1:
                images[name].append(alone)
                whole[name].append(step)
    print(f"{'augment':<22} {'images':>10} {'step':>10} {'ratio':>7}")
    for name in runs:
        ratio = statistics.median(a / b for a, b in zip(whole[name], whole["none"], strict=True))
        print(
            f"{name:<22} {1000 * statistics.median(images[name]):7.2f} ms "
            f"{1000 * statistics.median(whole[name]):7.1f} ms {ratio:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
