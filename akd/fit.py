"""The training loop: the only one, for trials, teachers, controls and champions. Pure torch.

A carrier (in process, a Tune trial, a Ray Train worker) gives it data, a teacher and three callbacks; the loop knows
nothing of where it runs. On the CPU equal seeds and equal threads give the same bits, also when a run is cut after any
epoch and started again from that epoch's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd.allocation import keep_freed_memory
from akd.config import Experiment, TrainConfig, whole_batches
from akd.data.dataset import TrainData
from akd.data.loader import DeviceLoader
from akd.data.pick import Scorer
from akd.data.policies import create_policy
from akd.epochs import check_finite, size_of, train_epoch, train_heads
from akd.errors import ExperimentError
from akd.methods import Method, Shapes, create_method
from akd.metrics import evaluate
from akd.models import Output, check_images, layout, load_weights, seeded_model
from akd.rungs import restarts
from akd.state import TrainState
from akd.step import Stepper
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


def with_restarts(experiment: Experiment) -> Experiment:
    """The experiment whose schedule knows where it starts again: at its search's rungs, if nothing else is said.

    A search that stops nothing early has no rungs, and its runs one cycle.
    """
    train, search = experiment.train, experiment.search
    if train.schedule != "restarts" or train.restarts or search.scheduler == "none":
        return experiment
    found = tuple(restarts(train.epochs, search.grace, search.eta))
    return replace(experiment, train=replace(train, restarts=found))


def fit(
    experiment: Experiment,
    data: TrainData,
    teacher_source: TeacherSource | None,
    *,
    start: Path | None = None,
    initial: Path | None = None,
    report: Callable[[EpochRecord], None] = lambda record: None,
    report_heads: Callable[[HeadRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
    world: World = ALONE,
) -> FitResult:
    """Train the experiment's student.

    Args:
        experiment: resolved; only ``student``, ``method``, ``train``, ``teacher.cache.epochs`` and of ``search`` what
            its rungs follow from are read.
        data: files, training and validation rows; an empty validation part reports no ``val/`` metrics.
        teacher_source: what the method learns from; ``None`` if it needs no teacher.
        start: checkpoint to continue from. The epoch it ends with is reported again first, so that a carrier that
            was killed between writing and reporting learns of it.
        initial: safetensors file of the weights the student starts from; default drawn from ``train.seed``.
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
    experiment = with_restarts(experiment)
    train, device = experiment.train, torch.device(device)
    check_data(experiment, data)
    check_workers(experiment, world.size)
    if train.threads:
        torch.set_num_threads(train.threads)
    if device.type == "cpu":
        keep_freed_memory()
    loader, amp = make_loader(experiment, data, device, world)
    state, method = _networks(experiment, data, teacher_source, loader, world, initial)
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
        metrics = train_heads(state, loader, stepper, state.head_epoch + 1)
        check_finite({**metrics, "weights": size_of(state.parameters)}, state.head_epoch + 1, "head epoch")
        state.head_epoch += 1
        state.head_history.append({"head_epoch": float(state.head_epoch), **metrics})
        report_heads(_head_record(state))
    stopped = False
    while state.epoch < train.epochs and not (stopped := bool(state.epoch) and world.any(stop())):
        metrics = train_epoch(state, loader, stepper, state.epoch + 1)
        if len(data.val):
            low, high = world.share(len(data.val))
            scores = evaluate(state.scored, loader.plain(data.val[low:high]), world)
            metrics |= {f"val/{k}": v for k, v in scores.items()}
        # The last step of an epoch shows in no loss of its own: the weights tell, and the validation loss.
        check_finite({**metrics, "weights": size_of(state.parameters)}, state.epoch + 1)
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
    experiment: Experiment,
    data: TrainData,
    source: TeacherSource | None,
    loader: DeviceLoader,
    world: World,
    initial: Path | None = None,
) -> tuple[TrainState, Method]:
    """Student and method as they start, on the device."""
    train = experiment.train
    student = build_student(experiment, data)
    if initial is not None:
        load_weights(student, initial)
    student = student.to(loader.device, loader.dtype)
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


def metrics_equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """True if two epochs' metrics agree bit for bit in everything but wall-clock time."""
    return {k: v for k, v in a.items() if not k.startswith("time/")} == {
        k: v for k, v in b.items() if not k.startswith("time/")
    }
