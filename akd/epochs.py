"""One epoch of training, and one of a method's own parameters: steps, the schedule, what is measured.

Nothing is read from the device before an epoch's end.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping

import torch
from torch import nn

from akd.config import TrainConfig
from akd.data.loader import DeviceLoader
from akd.errors import DivergedError
from akd.methods import Method
from akd.metrics import Mean, step_accuracy
from akd.state import TrainState
from akd.step import Part, Stepper


def learning_rate(train: TrainConfig, epoch: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        epoch: counted from 1; a step schedule keeps the old rate in the decay epoch itself.
        progress: steps done over all steps of the run, 0..1.
    """
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if train.schedule == "restarts":
        return train.lr * 0.5 * (1 + math.cos(math.pi * _of_cycle(train, epoch, progress)))
    if train.schedule == "step":
        return train.lr * train.decay_factor ** sum(epoch > e for e in train.decay_epochs)
    return train.lr


def _of_cycle(train: TrainConfig, epoch: int, progress: float) -> float:
    """How much of the cycle that ``epoch`` lies in is done, 0..1: cycles end with the epochs of ``train.restarts``."""
    ends = [0, *(e for e in train.restarts if e < train.epochs), train.epochs]
    low, high = next((low, high) for low, high in itertools.pairwise(ends) if epoch <= high)
    return max(0.0, (progress * train.epochs - low) / (high - low))


def train_epoch(state: TrainState, loader: DeviceLoader, stepper: Stepper, epoch: int) -> dict[str, float]:
    """An epoch of student and method, counted from 1; its metrics, the same on all workers.

    Raises:
        DivergedError: a loss that is not finite.
    """
    train, means, began, before = state.train_config, Mean(), time.perf_counter(), _teacher_count(stepper)
    state.student.train()
    state.method.train()
    lr = train.lr
    for images, batch in loader.epoch(epoch):
        step = (epoch - 1) * loader.steps + batch.step
        lr = learning_rate(train, epoch, step / (train.epochs * loader.steps))
        state.set_lr(lr)
        for part in stepper.gradients(images, batch):
            assert part.logits is not None
            _watch(means, state.method, part, "train/loss")
            means.add("train/accuracy", step_accuracy(part.logits, part.batch), part.batch.images)
        state.step()
        state.update_average()
    metrics = means.read(stepper.world)
    check_finite(metrics, epoch)
    metrics |= _teacher_images(stepper, before, loader.device)
    return metrics | {"lr": lr} | _speed(loader, time.perf_counter() - began)


def train_heads(state: TrainState, loader: DeviceLoader, stepper: Stepper, head_epoch: int) -> dict[str, float]:
    """A head epoch: images and order of the student's epoch of the same number, so that one teacher cache serves both.

    The learning rate falls along a cosine from the student's highest to 0 over all head epochs, whatever the schedule.
    """
    train, means, began = state.train_config, Mean(), time.perf_counter()
    steps, before = loader.steps * state.method.warmup_epochs, _teacher_count(stepper)
    state.method.train()
    lr = train.lr
    for images, batch in loader.epoch(head_epoch, "heads"):
        lr = train.lr * 0.5 * (1 + math.cos(math.pi * ((head_epoch - 1) * loader.steps + batch.step) / steps))
        state.set_lr(lr)
        for part in stepper.gradients(images, batch, heads=True):
            _watch(means, state.method, part, "heads/loss")
        state.step()
    metrics = means.read(stepper.world) | _teacher_images(stepper, before, loader.device)
    return metrics | {"lr": lr} | _speed(loader, time.perf_counter() - began)


def _teacher_count(stepper: Stepper) -> tuple[int, int]:
    return (0, 0) if stepper.source is None else (stepper.source.asked, stepper.source.made)


def _teacher_images(stepper: Stepper, before: tuple[int, int], device: torch.device) -> dict[str, float]:
    """Images of which the teacher's outputs were asked for since ``before``, and that it was run on, by all workers.

    They are named like times: who runs the teacher and who finds it done is no part of a run's result.
    """
    if stepper.source is None:
        return {}
    since = [now - then for now, then in zip(_teacher_count(stepper), before, strict=True)]
    if stepper.world.size > 1:
        since = stepper.world.sum(torch.tensor(since, dtype=torch.float64, device=device)).tolist()
    return {"time/teacher_asked": float(since[0]), "time/teacher_images": float(since[1])}


def _watch(means: Mean, method: Method, part: Part, loss: str) -> None:
    count = len(part.batch.index)
    means.add(loss, part.loss, count)
    for name, value in ({f"loss/{name}": term for name, term in part.terms.items()} | method.measures()).items():
        means.add(name, value, count)


def _speed(loader: DeviceLoader, seconds: float) -> dict[str, float]:
    return {
        "time/epoch_s": seconds,
        "time/images_per_s": loader.steps * loader.batch_size / seconds,
        "time/devices": float(loader.world.size),
    }


def check_finite(metrics: Mapping[str, float], epoch: int, stage: str = "epoch") -> None:
    """Raise :class:`DivergedError` if a metric is not finite; it names which, and the epoch."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(f"diverged in {stage} {epoch}: {', '.join(sorted(bad))} not finite")


def size_of(parameters: list[nn.Parameter]) -> float:
    """Sum of absolute values: finite if and only if the weights are, but for an overflow that tells the same."""
    return float(torch.stack([p.detach().abs().sum() for p in parameters]).sum())
