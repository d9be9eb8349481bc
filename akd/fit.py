"""The training loop: the only one, for trials, teachers, controls and champions. Pure torch.

A carrier (in process, a Tune trial, a Ray Train worker) gives it data, a teacher and three callbacks; the loop knows
nothing of where it runs. On the CPU equal seeds and equal threads give the same bits, also when a run is cut after any
epoch and started again from that epoch's state.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd import checkpoint
from akd.allocation import keep_freed_memory
from akd.config import Experiment, TrainConfig, whole_batches
from akd.data.dataset import TrainData
from akd.data.loader import DeviceLoader
from akd.data.pick import Scorer
from akd.data.policies import create_policy
from akd.errors import CheckpointError, DivergedError, ExperimentError
from akd.methods import Method, Shapes, create_method
from akd.metrics import Mean, evaluate, step_accuracy
from akd.models import Output, check_images, layout, seeded_model
from akd.step import Part, Stepper
from akd.teacher.source import TeacherSource
from akd.world import ALONE, World

_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch, as handed to the carrier.

    Attributes:
        epoch: counted from 1.
        metrics: ``train/loss``, ``train/accuracy``, ``loss/<term>``, ``val/accuracy``, ``val/loss``, ``lr``, ...
        state: where the run stands; :meth:`TrainState.save` makes it a checkpoint.
        final: no epoch follows.
    """

    epoch: int
    metrics: dict[str, float]
    state: TrainState
    final: bool


@dataclass(frozen=True)
class HeadRecord:
    """One finished head epoch: the method's own parameters are trained before the student's first epoch.

    Attributes:
        head_epoch: counted from 1.
        metrics: ``heads/loss``, ``loss/<term>``, what the method measures, ``lr``, ``time/...``.
        state: as of an :class:`EpochRecord`.
    """

    head_epoch: int
    metrics: dict[str, float]
    state: TrainState


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        history: one dict of metrics per epoch run, with ``epoch``.
        epochs_run: how many epochs this student has seen.
        accuracy: top-1 on the validation split (0..1) of the scored weights after the last epoch; NaN without a split.
        stopped: the carrier asked for an early end.
        student: the network with the scored weights, in eval mode, on the device.
    """

    history: list[dict[str, float]]
    epochs_run: int
    accuracy: float
    stopped: bool
    student: nn.Module


class TrainState:
    """Everything that changes during training: student, averaged student, method, optimizer, epochs, histories."""

    def __init__(self, train: TrainConfig, student: nn.Module, method: Method, device: torch.device):
        self.train_config, self.student, self.method = train, student, method
        self.average = copy.deepcopy(student).requires_grad_(False) if train.ema else None
        self.updates = 0
        self.epoch = self.head_epoch = 0
        self.history: list[dict[str, float]] = []
        self.head_history: list[dict[str, float]] = []
        groups = [(list(student.parameters()), 1.0), *method.groups()]
        self.parameters = [p for parameters, _ in groups for p in parameters]
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "factor": factor} for parameters, factor in groups if parameters],
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    @property
    def scored(self) -> nn.Module:
        """The network whose accuracy counts: the averaged one if averaging is on."""
        return self.student if self.average is None else self.average

    def set_lr(self, lr: float) -> None:
        """The student's learning rate of the next step; the method's parameters have theirs in proportion."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self) -> None:
        """One step of the optimizer down the gradients; they are gone afterwards."""
        if self.train_config.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.train_config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the exponential moving average; young averages forget faster, so that they start well.

        Parameters are averaged; buffers are the student's own. Batch normalisation's statistics are averages already:
        averaged again they lag so far behind that early epochs, where the scheduler decides, are scored by the lag
        (digits, lr 0.2, epoch 3: 89 % with copied statistics, 74 % with averaged ones).
        """
        if self.average is None:
            return
        self.updates += 1
        decay = min(self.train_config.ema, (1 + self.updates) / (10 + self.updates))
        # All at once: on a GPU a launch costs more than most of these tensors.
        torch._foreach_lerp_([*self.average.parameters()], [*self.student.parameters()], 1 - decay)
        for kept, current in zip(self.average.buffers(), self.student.buffers(), strict=True):
            kept.copy_(current)

    def save(self, folder: Path, keep: int = 2) -> Path:
        """Write a checkpoint of this state under ``folder``; see :func:`akd.checkpoint.save`."""
        tensors = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, p in enumerate(self.parameters):
            momentum = self.optimizer.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i}"] = momentum
        state = {
            "epoch": self.epoch,
            "head_epoch": self.head_epoch,
            "updates": self.updates,
            "history": self.history,
            "head_history": self.head_history,
        }
        return checkpoint.save(folder, self.epoch, tensors, state, keep, self.head_epoch)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: damaged, or of another network or method.
        """
        tensors, state = checkpoint.load(path)

        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}

        try:
            self.student.load_state_dict(part("student"))
            self.method.load_state_dict(part("method"))
            if self.average is not None:
                self.average.load_state_dict(part("average"))
        except RuntimeError as error:
            raise CheckpointError(f"{path} belongs to another experiment: {str(error).splitlines()[0]}") from None
        for i, value in part("momentum").items():
            p = self.parameters[int(i)]
            # In the parameter's own layout, which the fused optimizer takes for granted.
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(value)
        self.epoch, self.updates, self.history = state["epoch"], state["updates"], state["history"]
        self.head_epoch, self.head_history = state.get("head_epoch", 0), state.get("head_history", [])


def learning_rate(train: TrainConfig, epoch: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        epoch: counted from 1; a step schedule keeps the old rate in the decay epoch itself.
        progress: steps done over all steps of the run, 0..1.
    """
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if train.schedule == "step":
        return train.lr * train.decay_factor ** sum(epoch > e for e in train.decay_epochs)
    return train.lr


def shapes_of(
    student: nn.Module, image: Tensor, source: TeacherSource | None, num_classes: int, images: int = 0
) -> Shapes:
    """Widths of both networks, read from one forward pass of one image in eval mode."""

    def probe(model: nn.Module) -> Output:
        training = model.training
        with torch.no_grad():
            out = model.eval()(image)
        model.train(training)
        return out

    mine = probe(student)
    theirs = source.probe(image) if source is not None else None
    return Shapes(
        num_classes=num_classes,
        student_embedding=mine.embedding.shape[1],
        student=tuple(m.shape[1] for m in mine.maps),
        teacher_embedding=theirs.embedding.shape[1] if theirs else 0,
        teacher=tuple(m.shape[1] for m in theirs.maps) if theirs else (),
        images=images,
    )


def build_student(experiment: Experiment, data: TrainData) -> nn.Module:
    """The student with its initial weights, which depend on ``train.seed`` alone."""
    size = data.dataset.size
    check_images(experiment.student.name, *size)
    return seeded_model(
        experiment.student.name,
        len(data.dataset.classes),
        experiment.train.seed,
        in_channels=data.dataset.channels,
        image_size=size,
        taps=experiment.student.taps,
    )


def check_data(experiment: Experiment, data: TrainData) -> None:
    """Refuse what cannot be trained.

    Raises:
        ExperimentError: fewer training images than one batch; images the augmentation cannot be used on.
    """
    create_policy(experiment.method.augment, data)
    if len(data.train) < experiment.train.batch_size:
        raise ExperimentError(
            f"must be at most {len(data.train)}, the number of training images",
            key="train.batch_size",
            value=experiment.train.batch_size,
            where=experiment.origins.of("train.batch_size"),
        )


def check_workers(experiment: Experiment, size: int) -> None:
    """Refuse more workers than a batch has images.

    Raises:
        ExperimentError: a worker would get none.
    """
    if size > experiment.train.batch_size:
        raise ExperimentError(
            f"must be at least {size}, one image for each worker",
            key="train.batch_size",
            value=experiment.train.batch_size,
            where=experiment.origins.of("train.batch_size"),
        )


def fit(
    experiment: Experiment,
    data: TrainData,
    teacher_source: TeacherSource | None,
    *,
    start: Path | None = None,
    report: Callable[[EpochRecord], None] = lambda record: None,
    report_heads: Callable[[HeadRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
    world: World = ALONE,
) -> FitResult:
    """Train the experiment's student.

    Args:
        experiment: resolved; only ``student``, ``method``, ``train`` and ``teacher.cache.epochs`` are read.
        data: files, training and validation rows; an empty validation part reports no ``val/`` metrics.
        teacher_source: what the method learns from; ``None`` if it needs no teacher.
        start: checkpoint to continue from. The epoch it ends with is reported again first, so that a carrier that
            was killed between writing and reporting learns of it.
        report: called after every epoch.
        report_heads: called after every head epoch, all of which come before the first epoch.
        stop: asked after every report; true ends the run.
        device: where to train.
        world: the workers that share this run; each calls with the same arguments and gets the same metrics.

    Raises:
        DivergedError: a loss that is not finite; nothing of that epoch is reported. All workers raise it.
        ExperimentError: fewer images than a batch or than workers; parts of a batch for a relational method.
        CheckpointError: ``start`` is damaged or of another experiment.
    """
    train, device = experiment.train, torch.device(device)
    check_data(experiment, data)
    check_workers(experiment, world.size)
    if train.threads:
        torch.set_num_threads(train.threads)
    if device.type == "cpu":
        keep_freed_memory()
    loader, amp = make_loader(experiment, data, device, world)
    state, method = _networks(experiment, data, teacher_source, loader, world)
    loader.score = _scorer(loader, state, teacher_source, amp)
    if teacher_source is not None:
        loader.before = partial(teacher_source.before, amp=amp)
    stepper = Stepper(
        state.student,
        method,
        teacher_source,
        world=world,
        amp=amp,
        micro_batch=train.micro_batch,
        compiled=train.compile == "on",
    )
    if start is not None:
        state.load(start)
        if state.history:
            report(_record(state, train))
        elif state.head_history:
            report_heads(_head_record(state))
    while not state.epoch and state.head_epoch < method.warmup_epochs:
        metrics = _train_heads(state, loader, stepper, state.head_epoch + 1)
        _check_finite({**metrics, "weights": _size(state.parameters)}, state.head_epoch + 1, "head epoch")
        state.head_epoch += 1
        state.head_history.append({"head_epoch": float(state.head_epoch), **metrics})
        report_heads(_head_record(state))
    stopped = False
    while state.epoch < train.epochs and not (stopped := bool(state.epoch) and world.any(stop())):
        metrics = _train_epoch(state, loader, stepper, state.epoch + 1)
        if len(data.val):
            low, high = world.share(len(data.val))
            scores = evaluate(state.scored, loader.plain(data.val[low:high]), world)
            metrics |= {f"val/{k}": v for k, v in scores.items()}
        # The last step of an epoch shows in no loss of its own: the weights tell, and the validation loss.
        _check_finite({**metrics, "weights": _size(state.parameters)}, state.epoch + 1)
        state.epoch += 1
        state.history.append({"epoch": float(state.epoch), **metrics})
        report(_record(state, train))
    accuracy = state.history[-1].get("val/accuracy", math.nan) if state.history else math.nan
    return FitResult(state.history, state.epoch, accuracy, stopped, state.scored.eval())


def make_loader(
    experiment: Experiment, data: TrainData, device: torch.device, world: World = ALONE
) -> tuple[DeviceLoader, bool]:
    """The images of an experiment's training, and whether networks run on them in bfloat16."""
    train = experiment.train
    loader = DeviceLoader(
        data,
        batch_size=train.batch_size,
        seed=train.seed,
        plan_seed=train.plan_seed,
        device=device,
        dtype=_DTYPES.get(train.precision, torch.float32),
        world=world,
        policy=create_policy(experiment.method.augment, data),
        passes=train.epoch_factor,
        repeat=experiment.teacher.cache.epochs,
    )
    return loader, train.precision == "bfloat16" or (train.precision == "auto" and device.type == "cuda")


def _networks(
    experiment: Experiment, data: TrainData, source: TeacherSource | None, loader: DeviceLoader, world: World
) -> tuple[TrainState, Method]:
    """Student and method as they start, on the device."""
    train = experiment.train
    student = build_student(experiment, data).to(loader.device, loader.dtype)
    image = next(loader.plain(data.train[:1]))[0]
    # All workers choose the same: a network may fail on one of them alone.
    if not world.any(not layout.works(student, image)):
        student = layout.to_train(student)
    shapes = shapes_of(student, image, source, len(data.dataset.classes), len(data.dataset.labels))
    method = create_method(experiment.method, shapes, label_smoothing=train.label_smoothing, seed=train.seed)
    if train.micro_batch and method.relational:
        raise whole_batches(experiment.method, train, experiment.origins)
    if train.sync_batchnorm:
        student = world.synchronised(student)
        if not method.relational:  # which sees the global batch anyway
            method = world.synchronised(method)  # type: ignore[assignment]
    return TrainState(train, student, method.to(loader.device, loader.dtype), loader.device), method


def _scorer(loader: DeviceLoader, state: TrainState, source: TeacherSource | None, amp: bool) -> Scorer | None:
    """What the loader picks candidates by, where its policy makes more than it keeps."""
    if loader.policy is None or not loader.policy.criterion:
        return None
    config = loader.policy.config
    return Scorer(config.criterion, config.temperature, state.student, source, amp)


def _record(state: TrainState, train: TrainConfig) -> EpochRecord:
    metrics = {k: v for k, v in state.history[-1].items() if k != "epoch"}
    return EpochRecord(state.epoch, metrics, state, state.epoch >= train.epochs)


def _head_record(state: TrainState) -> HeadRecord:
    metrics = {k: v for k, v in state.head_history[-1].items() if k != "head_epoch"}
    return HeadRecord(state.head_epoch, metrics, state)


def _size(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.detach().abs().sum() for p in parameters]).sum())


def _train_heads(state: TrainState, loader: DeviceLoader, stepper: Stepper, head_epoch: int) -> dict[str, float]:
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


def _train_epoch(state: TrainState, loader: DeviceLoader, stepper: Stepper, epoch: int) -> dict[str, float]:
    train, means, began, before = state.train_config, Mean(), time.perf_counter(), _teacher_count(stepper)
    state.student.train()
    state.method.train()
    lr = train.lr
    for images, batch in loader.epoch(epoch):
        lr = learning_rate(train, epoch, ((epoch - 1) * loader.steps + batch.step) / (train.epochs * loader.steps))
        state.set_lr(lr)
        for part in stepper.gradients(images, batch):
            assert part.logits is not None
            _watch(means, state.method, part, "train/loss")
            means.add("train/accuracy", step_accuracy(part.logits, part.batch), part.batch.images)
        state.step()
        state.update_average()
    metrics = means.read(stepper.world)
    _check_finite(metrics, epoch)
    metrics |= _teacher_images(stepper, before, loader.device)
    return metrics | {"lr": lr} | _speed(loader, time.perf_counter() - began)


def _check_finite(metrics: Mapping[str, float], epoch: int, stage: str = "epoch") -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(f"diverged in {stage} {epoch}: {', '.join(sorted(bad))} not finite")


def metrics_equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """True if two epochs' metrics agree bit for bit in everything but wall-clock time."""
    return {k: v for k, v in a.items() if not k.startswith("time/")} == {
        k: v for k, v in b.items() if not k.startswith("time/")
    }
