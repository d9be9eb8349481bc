"""The training loop on a few hundred digits: exact repetition, exact resume, and that it learns."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from akd import checkpoint
from akd.config import Experiment, TrainConfig, resolve
from akd.data import DataConfig, EpochPlan, TrainData, load, split, training_order
from akd.data.augment import normalise
from akd.data.loader import DeviceLoader
from akd.epochs import learning_rate
from akd.errors import CheckpointError, DivergedError, ExperimentError
from akd.fit import EpochRecord, FitResult, HeadRecord, fit, metrics_equal, with_restarts
from akd.methods import Shapes, create_method
from akd.metrics import evaluate
from akd.models import Output, seeded_model
from akd.rungs import restarts
from akd.state import TrainState
from akd.teacher import LiveTeacher
from akd.teacher.keep import as_experiment
from akd.world import ALONE

EPOCHS = 3


@pytest.fixture(scope="module")
def data() -> TrainData:
    """270 training and 30 validation images: four steps of 64 an epoch, the rest of 14 dropped."""
    config = DataConfig(subset=300)
    return split(config, load(config))


@pytest.fixture
def teacher() -> nn.Module:
    return seeded_model("wrn_16_1", 10, seed=77, in_channels=1)


def experiment(method: Any = "none", **train: Any) -> Experiment:
    # threads is left out: the tests' one thread is set for the whole process
    plain = {"schedule": "cosine", "ema": 0.0}
    return resolve({"method": method, "train": {"epochs": EPOCHS, "lr": 0.1, "precision": "float32", **plain, **train}})


def run(data: TrainData, teacher: nn.Module | None = None, method: Any = "none", **kw: Any) -> FitResult:
    hooks = {k: kw.pop(k) for k in ("start", "report", "stop") if k in kw}
    if teacher is not None:
        method = "kd"
    source = None if teacher is None else LiveTeacher(teacher)
    return fit(experiment(method, **kw), data, source, **hooks)


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in result.student.state_dict().items()}


def same_weights(a: FitResult, b: FitResult) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def same_history(a: FitResult, b: FitResult) -> bool:
    return len(a.history) == len(b.history) and all(map(metrics_equal, a.history, b.history))


# What changes the state a checkpoint has to carry, or the arithmetic between checkpoints.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-momentum": {"momentum": 0.0},
    "ema": {"ema": 0.95},
    "nesterov-smoothing-clip": {"nesterov": True, "label_smoothing": 0.1, "grad_clip": 1.0},
    "step-ema": {"schedule": "step", "decay_epochs": [1, 2], "ema": 0.9},
    "restarts-ema": {"schedule": "restarts", "ema": "auto"},  # cycles of one epoch and of two: cut in the middle too
    "float64": {"precision": "float64"},
    "bfloat16": {"precision": "bfloat16"},
}


class TestRepetition:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
    def test_same_seed_same_bits_and_resume_from_every_epoch(
        self, settings: dict[str, Any], data: TrainData, teacher: nn.Module, tmp_path: Path
    ) -> None:
        teacher = teacher.double() if settings.get("precision") == "float64" else teacher
        whole = run(data, teacher, report=lambda record: record.state.save(tmp_path, keep=9) and None, **settings)
        torch.rand(3)  # the global generator must not matter
        assert same_history(whole, again := run(data, teacher, **settings))
        assert same_weights(whole, again)
        paths = checkpoint.all_checkpoints(tmp_path)
        assert len(paths) == EPOCHS
        for path in paths:
            resumed = run(data, teacher, start=path, **settings)
            assert same_history(whole, resumed), path.name
            assert same_weights(whole, resumed), path.name
            assert resumed.accuracy == whole.accuracy
            assert resumed.epochs_run == EPOCHS

    def test_other_global_seed_same_bits(self, data: TrainData) -> None:
        torch.manual_seed(1)
        one = run(data, epochs=1)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert same_weights(one, run(data, epochs=1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_each_seed_changes_what_it_should(self, data: TrainData) -> None:
        base = run(data, epochs=1)
        assert not same_weights(base, run(data, epochs=1, seed=1))
        assert not same_weights(base, run(data, epochs=1, plan_seed=1))
        # Initial weights hang on seed alone: with a step too small to matter the student stays where it began.
        still = {"epochs": 1, "lr": 1e-30, "weight_decay": 0.0}
        one, plan, seed = (run(data, **still, **s).student for s in ({}, {"plan_seed": 1}, {"seed": 1}))
        assert torch.equal(one.conv1.weight, plan.conv1.weight)
        assert torch.equal(one.fc.bias, plan.fc.bias)
        assert not torch.equal(one.conv1.weight, seed.conv1.weight)

    @pytest.mark.parametrize(
        "setting",
        [
            {"nesterov": True},
            {"label_smoothing": 0.1},
            {"momentum": 0.5},
            {"weight_decay": 0.0},
            {"grad_clip": 0.1},
            {"schedule": "constant"},
            {"schedule": "restarts", "epochs": 2, "restarts": [1]},
            {"batch_size": 32},
            {"lr": 0.2},
            {"ema": 0.9},
            {"ema": "auto"},
        ],
        ids=lambda setting: "-".join(map(str, next(iter(setting.items())))),
    )
    def test_every_setting_reaches_the_weights(self, data: TrainData, setting: dict[str, Any]) -> None:
        epochs = setting.get("epochs", 1)
        assert not same_weights(run(data, epochs=epochs), run(data, **{"epochs": 1} | setting))

    def test_data_seed_is_no_part_of_the_loop(self, data: TrainData) -> None:
        other = resolve({"method": "none", "data": {"split_seed": 5}, "train": {"epochs": 1, "lr": 0.1, "ema": 0}})
        assert same_weights(fit(other, data, None), run(data, epochs=1))

    def test_method_settings_change_the_loss_and_not_the_order(self, data: TrainData, teacher: nn.Module) -> None:
        still = {"epochs": 1, "lr": 1e-30, "weight_decay": 0.0}
        alone, taught = run(data, **still), run(data, teacher, **still)
        assert taught.history[0]["loss/ce"] == alone.history[0]["loss/ce"]
        assert taught.history[0]["train/loss"] == pytest.approx(
            0.1 * taught.history[0]["loss/ce"] + 0.9 * taught.history[0]["loss/kd"], rel=1e-6
        )


VIEWS: dict[str, dict[str, Any]] = {
    "default": {"head_warmup_epochs": 2},
    "no-warm-up-not-detached": {"head_warmup_epochs": 0, "detach": False, "count": 2},
    "projected-own-rate": {"head_warmup_epochs": 1, "head": "projected", "head_width": 8, "head_lr": 0.3},
    "low-rank-released": {"head_warmup_epochs": 2, "head": "low_rank", "head_rank": 4, "as_released": True},
}


def with_views(
    data: TrainData, teacher: nn.Module, views: dict[str, Any], folder: Path | None = None, **kw: Any
) -> tuple[FitResult, list[HeadRecord]]:
    """A run with Angular-KD; every checkpoint of both stages is kept in ``folder``."""
    heads: list[HeadRecord] = []
    start = kw.pop("start", None)

    def save(record: EpochRecord | HeadRecord) -> None:
        if isinstance(record, HeadRecord):
            heads.append(record)
        if folder is not None:
            record.state.save(folder, keep=9)

    method = {"host": "kd", "views": {"name": "angular_kd", **views}}
    source = LiveTeacher(teacher, frozenset({"logits", "embedding"}))
    result = fit(experiment(method, **kw), data, source, start=start, report=save, report_heads=save)
    return result, heads


class TestHeadEpochs:
    @pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
    @pytest.mark.parametrize(
        "train",
        [{"ema": 0.9, "grad_clip": 1.0}, {"momentum": 0.0, "precision": "bfloat16"}],
        ids=["ema-clip", "bfloat16"],
    )
    def test_same_bits_and_resume_from_every_checkpoint_of_both_stages(
        self, views: dict[str, Any], train: dict[str, Any], data: TrainData, teacher: nn.Module, tmp_path: Path
    ) -> None:
        whole, heads = with_views(data, teacher, views, tmp_path, epochs=2, **train)
        assert len(heads) == views["head_warmup_epochs"]
        torch.rand(3)
        again, _ = with_views(data, teacher, views, epochs=2, **train)
        assert same_history(whole, again)
        assert same_weights(whole, again)
        paths = checkpoint.all_checkpoints(tmp_path)
        assert [p.name for p in paths] == [
            *(f"epoch_000000_head_{k:06d}" for k in range(1, len(heads) + 1)),
            "epoch_000001",
            "epoch_000002",
        ]
        final = checkpoint.load(paths[-1])[0]
        for number, path in enumerate(paths, 1):
            resumed, rest = with_views(
                data, teacher, views, tmp_path / "resumed" / path.name, start=path, epochs=2, **train
            )
            assert same_history(whole, resumed), path.name
            assert same_weights(whole, resumed), path.name
            # In warm-up the head epoch it starts from is reported again first; after it no head epoch is.
            assert [h.head_epoch for h in rest] == list(range(number, len(heads) + 1)), path.name
            assert all(metrics_equal(a.metrics, b.metrics) for a, b in zip(heads[number - 1 :], rest, strict=True))
            mine = checkpoint.load(tmp_path / "resumed" / path.name / paths[-1].name)[0]
            assert mine.keys() == final.keys()
            assert all(torch.equal(mine[k], final[k]) for k in final), path.name

    def test_trains_the_heads_and_nothing_else(self, data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
        with_views(data, teacher, {"head_warmup_epochs": 1}, tmp_path, epochs=1)
        before, _ = checkpoint.load(tmp_path / "epoch_000000_head_000001")
        fresh = seeded_model("resnet8", 10, seed=0, in_channels=1).state_dict()
        assert all(torch.equal(before[f"student.{k}"], v) for k, v in fresh.items())
        config = experiment({"views": {"name": "angular_kd"}}).method
        untouched = create_method(config, Shapes(10, 64, 64)).state_dict()
        moved = [k for k, v in untouched.items() if not torch.equal(before[f"method.{k}"], v)]
        assert set(moved) == set(untouched)

    def test_learns_and_is_reported_as_a_stage_of_its_own(self, data: TrainData, teacher: nn.Module) -> None:
        result, heads = with_views(data, teacher, {"head_warmup_epochs": 3}, epochs=1)
        losses = [h.metrics["heads/loss"] for h in heads]
        assert losses == sorted(losses, reverse=True)
        assert [h["epoch"] for h in result.history] == [1.0]
        assert result.epochs_run == 1
        for record in heads:
            assert {"lr", "time/epoch_s", "time/images_per_s", "loss/views/supervision", "views/inside"} <= set(
                record.metrics
            )
            assert not any(k.startswith(("train/", "val/")) or k in ("loss/kd", "epoch") for k in record.metrics)
            total = sum(
                w * record.metrics[f"loss/{k}"] for k, w in record.state.method.weights().items() if "views" in k
            )
            assert record.metrics["heads/loss"] == pytest.approx(total, rel=1e-5)
        assert [round(h.metrics["lr"], 6) for h in heads] == sorted({round(h.metrics["lr"], 6) for h in heads})[::-1]

    def test_learning_rate_of_the_heads(self, data: TrainData, teacher: nn.Module) -> None:
        """A cosine over all head steps, then the student's schedule; the heads' share of both."""
        seen: list[tuple[float, ...]] = []
        original = TrainState.step

        def spy(state: TrainState) -> None:
            seen.append(tuple(group["lr"] for group in state.optimizer.param_groups))
            original(state)

        TrainState.step = spy  # type: ignore[method-assign]
        try:
            with_views(data, teacher, {"head_warmup_epochs": 2, "head_lr": 0.25}, epochs=2)
        finally:
            TrainState.step = original  # type: ignore[method-assign]
        steps = len(data.train) // 64
        assert len(seen) == 4 * steps
        half = [0.1 * 0.5 * (1 + math.cos(math.pi * i / (2 * steps))) for i in range(2 * steps)]
        assert [lr for lr, _ in seen] == pytest.approx(2 * half)
        assert [lr for _, lr in seen] == pytest.approx([0.25 * lr for lr in 2 * half])

    def test_sees_the_images_of_the_students_epochs_with_other_draws(self, data: TrainData, teacher: nn.Module) -> None:
        """A cache of the teacher's outputs by epoch then serves both stages."""
        seen: list[tuple[torch.Tensor, Any]] = []

        class Spy(LiveTeacher):
            def __call__(self, images: torch.Tensor, batch: Any) -> Output:
                seen.append((images, batch.index))
                return super().__call__(images, batch)

        method = {"host": "kd", "views": {"name": "angular_kd", "head_warmup_epochs": 2}}
        fit(experiment(method, epochs=2), data, Spy(teacher))
        half = len(seen) // 2
        assert half == 2 * (len(data.train) // 64)
        for (a, i), (b, j) in zip(seen[:half], seen[half:], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(i, j)
        loader = DeviceLoader(
            data, batch_size=64, seed=0, plan_seed=0, device=torch.device("cpu"), dtype=torch.float32, world=ALONE
        )
        first, second = (torch.rand(4, generator=next(loader.epoch(1, s))[1].generator) for s in ("heads", "step"))
        assert not torch.equal(first, second)

    def test_diverged_within(self, data: TrainData, teacher: nn.Module) -> None:
        teacher.fc.bias.data.fill_(math.nan)
        with pytest.raises(DivergedError, match=r"diverged in head epoch 1: .*loss/views/logit"):
            with_views(data, teacher, {"head_warmup_epochs": 1})

    def test_metrics_of_an_epoch_stay_below_thirty(self, data: TrainData, teacher: nn.Module) -> None:
        """With test/accuracy and test/loss of a final run, and heads/loss of the stage before."""
        result, _ = with_views(data, teacher, {}, epochs=1)
        names = set(result.history[0]) - {"epoch"}
        watched = ("angle_between", "angle_to_teacher", "inside", "accuracy", "ensemble_accuracy", "ensemble_loss")
        watched += ("diversity", "bound", "soft_weight")
        assert {n for n in names if n.startswith("views/")} == {f"views/{n}" for n in watched}
        assert len(names) + 1 < 30
        assert result.history[0]["views/ensemble_loss"] <= result.history[0]["views/bound"]

    def test_an_older_checkpoint_without_head_epochs_is_read(self, data: TrainData, tmp_path: Path) -> None:
        run(data, epochs=1, report=lambda r: r.state.save(tmp_path) and None)
        tensors, state = checkpoint.load(tmp_path / "epoch_000001")
        del state["head_epoch"], state["head_history"]
        path = checkpoint.save(tmp_path / "old", 1, tensors, state)
        assert run(data, epochs=2, start=path).epochs_run == 2


class TestGolden:
    def test_losses_of_two_steps(self, data: TrainData, teacher: nn.Module) -> None:
        """Own values: the first two optimiser steps at default plan and seed, plain and distilled."""
        small = replace(data, train=data.train[:128])
        assert run(small, epochs=1).history[0]["train/loss"] == pytest.approx(2.375659, abs=1e-4)
        assert run(small, teacher, epochs=1).history[0]["loss/kd"] == pytest.approx(0.060550, abs=1e-4)
        assert run(replace(data, train=data.train[:64]), epochs=1).history[0]["train/loss"] == pytest.approx(
            2.428586, abs=1e-4
        )

    def test_first_epoch_against_a_literal_loop(self, data: TrainData) -> None:
        """Plain SGD written out, without loader, plan columns, schedule function or state class."""
        net = seeded_model("resnet8", 10, seed=0, in_channels=1).double().train()
        velocity = [torch.zeros_like(p) for p in net.parameters()]
        plan, order = EpochPlan(0, 1, len(data.dataset.labels)), training_order(0, 1, data.train)
        steps = len(order) // 64
        for step in range(steps):
            images = []
            for row in order[step * 64 : step * 64 + 64].tolist():
                padded = torch.zeros(10, 10, dtype=torch.float64)
                padded[1:9, 1:9] = data.dataset.images[row, 0]
                top, left = (plan.crop[row] * 3).floor().long().tolist()
                images.append(padded[top : top + 8, left : left + 8] / 255 - data.dataset.mean[0])
            x = torch.stack(images)[:, None] / data.dataset.std[0]
            loss = nn.functional.cross_entropy(net(x).logits, data.dataset.labels[order[step * 64 : step * 64 + 64]])
            net.zero_grad()
            loss.backward()
            lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / (2 * steps)))
            with torch.no_grad():
                for p, v in zip(net.parameters(), velocity, strict=True):
                    v.mul_(0.9).add_(p.grad + 5e-4 * p)
                    p.sub_(lr * v)
        got: list[dict[str, torch.Tensor]] = []

        def keep(record: EpochRecord) -> None:
            got.append({k: v.clone() for k, v in record.state.student.state_dict().items()})

        run(data, epochs=2, precision="float64", report=keep)
        for name, value in net.state_dict().items():
            assert torch.allclose(got[0][name].double(), value.double(), rtol=1e-9, atol=1e-11), name


class TestCarrier:
    def test_start_is_reported_again_first(self, data: TrainData, tmp_path: Path) -> None:
        first: list[EpochRecord] = []
        run(data, epochs=2, report=lambda r: first.append(r) or (r.state.save(tmp_path) and None))
        again: list[tuple[int, bool, dict[str, float]]] = []
        run(
            data,
            epochs=2,
            start=tmp_path / "epoch_000001",
            report=lambda r: again.append((r.epoch, r.final, r.metrics)),
        )
        assert [(e, final) for e, final, _ in again] == [(1, False), (2, True)]
        assert all(metrics_equal(m, r.metrics) for (_, _, m), r in zip(again, first, strict=True))

    def test_finished_checkpoint_reports_once_and_trains_no_more(self, data: TrainData, tmp_path: Path) -> None:
        whole = run(data, epochs=2, report=lambda r: r.state.save(tmp_path) and None)
        seen: list[int] = []
        result = run(data, epochs=2, start=tmp_path / "epoch_000002", report=lambda r: seen.append(r.epoch))
        assert seen == [2]
        assert not result.stopped
        assert same_weights(whole, result)

    def test_stop_ends_after_the_epoch_in_which_it_was_asked(self, data: TrainData) -> None:
        seen: list[int] = []
        result = run(data, epochs=5, report=lambda r: seen.append(r.epoch), stop=lambda: len(seen) >= 2)
        assert seen == [1, 2]
        assert (result.stopped, result.epochs_run, len(result.history)) == (True, 2, 2)

    def test_stop_after_the_last_epoch_is_no_early_end(self, data: TrainData) -> None:
        assert not run(data, epochs=1, stop=lambda: True).stopped

    def test_stopped_run_goes_on_as_if_it_had_not_been(self, data: TrainData, tmp_path: Path) -> None:
        whole = run(data)
        run(data, stop=lambda: True, report=lambda r: r.state.save(tmp_path) and None)
        assert same_weights(whole, run(data, start=checkpoint.latest(tmp_path)))

    def test_metrics_of_an_epoch(self, data: TrainData, teacher: nn.Module) -> None:
        metrics = run(data, teacher, epochs=1).history[0]
        assert set(metrics) == {
            *("epoch", "lr", "time/epoch_s", "time/images_per_s", "time/devices", "train/loss", "train/accuracy"),
            *("time/teacher_asked", "time/teacher_images"),
            *("loss/ce", "loss/kd", "val/accuracy", "val/loss"),
        }
        assert 0 <= metrics["val/accuracy"] <= 1

    def test_without_validation_rows(self, data: TrainData) -> None:
        result = run(data.with_validation_joined(), epochs=1)
        assert math.isnan(result.accuracy)
        assert not any(k.startswith("val/") for k in result.history[0])

    def test_metrics_equal_ignores_only_time(self) -> None:
        assert metrics_equal({"a": 1.0, "time/epoch_s": 1.0}, {"a": 1.0, "time/epoch_s": 2.0})
        assert not metrics_equal({"a": 1.0}, {"a": 1.0 + 1e-15})
        assert not metrics_equal({"a": 1.0}, {"a": 1.0, "b": 1.0})


class TestFailure:
    def test_diverged(self, data: TrainData) -> None:
        seen: list[int] = []
        with pytest.raises(DivergedError, match=r"diverged in epoch \d+: .*loss.* not finite"):
            run(data, epochs=5, lr=1e6, momentum=0.99, report=lambda r: seen.append(r.epoch))
        assert len(seen) < 5

    def test_diverged_in_the_very_last_step(self, data: TrainData) -> None:
        """The loss of that step was finite: only validation shows what the step has done."""
        small = replace(data, train=data.train[:64])
        seen: list[int] = []
        with pytest.raises(DivergedError, match="epoch 1: val/loss"):
            run(small, epochs=1, lr=1e30, report=lambda r: seen.append(r.epoch))
        assert not seen

    def test_nan_from_the_teacher(self, data: TrainData, teacher: nn.Module) -> None:
        teacher.fc.bias.data.fill_(math.nan)
        with pytest.raises(DivergedError, match="loss/kd"):
            run(data, teacher, epochs=1)

    def test_batch_larger_than_the_data(self, data: TrainData) -> None:
        with pytest.raises(ExperimentError, match=r"train\.batch_size = 271: must be at most 270"):
            run(data, batch_size=271)
        assert run(data, batch_size=270, epochs=1).epochs_run == 1

    def test_damaged_start(self, data: TrainData, tmp_path: Path) -> None:
        run(data, epochs=1, report=lambda r: r.state.save(tmp_path) and None)
        (tmp_path / "epoch_000001" / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match="damaged"):
            run(data, start=tmp_path / "epoch_000001")

    @pytest.mark.parametrize("change", [{"ema": 0.9}, {"student": "wrn_16_1"}])
    def test_start_of_another_experiment(self, change: dict[str, Any], data: TrainData, tmp_path: Path) -> None:
        run(data, epochs=1, report=lambda r: r.state.save(tmp_path) and None)
        values = {f"train.{k}" if k == "ema" else "student.name": v for k, v in change.items()}
        with pytest.raises(CheckpointError, match="belongs to another experiment"):
            fit(experiment().with_values(values), data, None, start=tmp_path / "epoch_000001")


class TestSchedule:
    def test_cosine_falls_from_lr_to_zero(self) -> None:
        train = TrainConfig(lr=0.4, schedule="cosine")
        assert learning_rate(train, 1, 0.0) == 0.4
        assert learning_rate(train, 1, 0.5) == pytest.approx(0.2)
        assert learning_rate(train, 1, 1 / 3) == pytest.approx(0.3)
        assert learning_rate(train, 1, 1.0) == pytest.approx(0.0, abs=1e-16)

    def test_step_falls_after_the_decay_epoch(self) -> None:
        train = TrainConfig(lr=1.0, schedule="step", decay_epochs=(2, 4), decay_factor=0.5)
        assert [learning_rate(train, e, 0.0) for e in range(1, 7)] == [1, 1, 0.5, 0.5, 0.25, 0.25]

    def test_restarts_fall_to_zero_at_every_rung(self) -> None:
        train = TrainConfig(lr=0.4, schedule="restarts", restarts=(2, 6), epochs=18)
        for first, last in ((1, 2), (3, 6), (7, 18)):
            length = last - first + 1

            def rate(epoch: int, done: float) -> float:
                return learning_rate(train, epoch, (epoch - 1 + done) / 18)

            assert rate(first, 0.0) == pytest.approx(0.4)
            middle = first + length // 2
            assert rate(middle, 0.0) == pytest.approx(0.2)
            assert rate(last, 1 - 1e-6) == pytest.approx(0.0, abs=1e-9)
            rates = [rate(e, k / 5) for e in range(first, last + 1) for k in range(5)]
            assert rates == sorted(rates, reverse=True)

    @pytest.mark.parametrize("epochs", [1, 7, 60, 299])
    @pytest.mark.parametrize("steps", [1, 3, 703])
    def test_no_step_of_a_restart_is_above_the_highest_rate(self, epochs: int, steps: int) -> None:
        """Rounding of the progress at a cycle's first step must not lead out of the cosine."""
        ends = tuple(restarts(epochs, None, 3))
        train = TrainConfig(lr=0.1, schedule="restarts", restarts=ends, epochs=epochs)
        for epoch in range(1, epochs + 1):
            first = learning_rate(train, epoch, ((epoch - 1) * steps) / (epochs * steps))
            assert 0 < first <= 0.1
            assert (first == pytest.approx(0.1, rel=1e-9)) == (epoch - 1 in (0, *ends))

    @pytest.mark.parametrize(
        ("tree", "restarts"),
        [
            ({"train": {"epochs": 60}}, (6, 18)),  # rungs 6, 18, 54: too little follows the last
            ({"train": {"epochs": 18}}, (2, 6)),
            ({"train": {"epochs": 18}, "search": {"grace": 4}}, (4,)),
            ({"train": {"epochs": 18}, "search": {"eta": 4}}, (2, 8)),
            ({"train": {"epochs": 10}, "search": {"eta": 2, "grace": 3}}, (3,)),  # not 6
            ({"train": {"epochs": 8}, "search": {"eta": 2, "grace": 1}}, (1, 2, 4)),
            ({"train": {"epochs": 1}}, ()),
            ({"train": {"epochs": 18}, "search": {"scheduler": "none"}}, ()),  # no rungs: one cycle
            ({"train": {"epochs": 18, "restarts": [5]}}, (5,)),
        ],
    )
    def test_restarts_are_the_rungs_of_the_search(self, tree: dict[str, Any], restarts: tuple[int, ...]) -> None:
        made = resolve(tree | {"train": tree["train"] | {"schedule": "restarts"}})
        assert with_restarts(made).train.restarts == restarts
        # So it is where a trial draws the schedule.
        drawn = resolve(tree | {"train": tree["train"] | {"schedule": "cosine"}}, strict=False)
        assert with_restarts(drawn) == drawn
        assert with_restarts(drawn.with_values({"train.schedule": "restarts"})).train.restarts == restarts

    def test_a_teacher_has_no_rungs(self) -> None:
        made = resolve({"teacher": {"train": {"schedule": "restarts", "epochs": 20}}})
        assert with_restarts(as_experiment(made)).train.restarts == ()
        given = resolve({"teacher": {"train": {"schedule": "restarts", "restarts": [5], "epochs": 20}}})
        assert with_restarts(as_experiment(given)).train.restarts == (5,)

    def test_without_restarts_it_is_the_cosine(self) -> None:
        for progress in (0.0, 0.3, 0.5, 0.99):
            epoch = 1 + int(progress * 10)
            one, other = (TrainConfig(epochs=10, schedule=schedule) for schedule in ("cosine", "restarts"))
            assert learning_rate(one, epoch, progress) == pytest.approx(learning_rate(other, epoch, progress))

    def test_the_loop_restarts_where_the_search_has_rungs(self, data: TrainData) -> None:
        steps = len(data.train) // 64
        got = [h["lr"] for h in run(data, schedule="restarts").history]  # rungs 1 and 3
        last = [(steps - 1) / steps, (steps - 1) / (2 * steps), (2 * steps - 1) / (2 * steps)]
        assert got == pytest.approx([0.1 * 0.5 * (1 + math.cos(math.pi * p)) for p in last])

    def test_constant(self) -> None:
        assert learning_rate(TrainConfig(lr=0.3, schedule="constant"), 50, 0.9) == 0.3

    def test_the_loop_uses_it_per_step(self, data: TrainData) -> None:
        steps = len(data.train) // 64
        got = [h["lr"] for h in run(data).history]  # the rate of each epoch's last step
        last = [(e * steps - 1) / (EPOCHS * steps) for e in (1, 2, 3)]
        assert got == [0.1 * 0.5 * (1 + math.cos(math.pi * p)) for p in last]


class TestAveragedWeights:
    def test_average_is_scored_and_returned(self, data: TrainData) -> None:
        kept: dict[str, Any] = {}

        def keep(record: EpochRecord) -> None:
            kept.update(mine=copy.deepcopy(record.state.student), average=copy.deepcopy(record.state.average))

        result = run(data, ema=0.99, report=keep)
        average = kept["average"].state_dict()
        assert all(torch.equal(v, average[k]) for k, v in result.student.state_dict().items())
        assert not torch.equal(kept["mine"].fc.weight, kept["average"].fc.weight)
        mean, std = (torch.tensor(values) for values in (data.dataset.mean, data.dataset.std))
        images = normalise(data.dataset.images[data.val], mean, std)
        batch = [(images, data.dataset.labels[data.val])]
        assert evaluate(kept["average"], batch)["loss"] == pytest.approx(result.history[-1]["val/loss"], rel=1e-5)
        assert evaluate(kept["mine"], batch)["loss"] != pytest.approx(result.history[-1]["val/loss"], rel=1e-5)
        assert not result.student.training

    def test_averaging_does_not_change_the_training(self, data: TrainData) -> None:
        a, b = run(data, ema=0.9), run(data)
        assert [h["train/loss"] for h in a.history] == [h["train/loss"] for h in b.history]

    @pytest.mark.parametrize(("ema", "most"), [(0.9, 0.9), ("auto", 1.0)])
    def test_against_a_literal_average(self, ema: Any, most: float, data: TrainData) -> None:
        config = experiment(ema=ema)
        state = TrainState(
            config.train, nn.BatchNorm1d(1), create_method(config.method, Shapes(10)), torch.device("cpu")
        )
        want = 1.0
        for t in range(1, 200):
            with torch.no_grad():
                state.student.weight.fill_(float(t))
                state.student.num_batches_tracked.fill_(t)
            state.update_average()
            decay = min(most, (1 + t) / (10 + t))
            want = decay * want + (1 - decay) * t
            assert float(state.average.weight) == pytest.approx(want, rel=1e-5)
            assert int(state.average.num_batches_tracked) == t
            if ema == "auto" and t > 50:  # a tenth of all steps behind, however many those are
                assert (t - want) / t == pytest.approx(0.1, abs=0.02)
        assert state.average.weight is not state.student.weight
        assert not state.average.weight.requires_grad


class TestTeacher:
    def test_never_changes_and_is_nowhere_in_the_state(
        self, data: TrainData, teacher: nn.Module, tmp_path: Path
    ) -> None:
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        states: list[Any] = []
        run(data, teacher, epochs=1, report=lambda r: states.append(r.state) or (r.state.save(tmp_path) and None))
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
        assert not teacher.training
        theirs = {id(p) for p in teacher.parameters()}
        assert not theirs & {id(p) for group in states[0].optimizer.param_groups for p in group["params"]}
        tensors, _ = checkpoint.load(tmp_path / "epoch_000001")
        assert {name.partition(".")[0] for name in tensors} == {"student", "momentum"}
        assert sum(name.startswith("student.") for name in tensors) == len(states[0].student.state_dict())

    def test_sees_what_the_student_sees(self, data: TrainData, teacher: nn.Module) -> None:
        seen: list[torch.Tensor] = []

        class Spy(LiveTeacher):
            def __call__(self, images: torch.Tensor, batch: Any) -> Output:
                assert torch.equal(data.dataset.labels[batch.index], batch.target)
                seen.append(images)
                return super().__call__(images, batch)

        given: list[torch.Tensor] = []
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda m, args: given.append(args[0]) if type(m).__name__ == "CifarResNet" and m.training else None
        )
        try:
            fit(experiment("kd", epochs=1), data, Spy(teacher))
        finally:
            hook.remove()
        assert len(seen) == len(given) == len(data.train) // 64
        assert all(torch.equal(a, b) for a, b in zip(seen, given, strict=True))

    def test_float32_teacher_serves_a_float64_student(self, data: TrainData, teacher: nn.Module) -> None:
        result = run(data, teacher, epochs=1, precision="float64")
        assert result.student.fc.weight.dtype == torch.float64


class TestPrecision:
    def test_float64_and_bfloat16_follow_float32(self, data: TrainData) -> None:
        wide, usual, low = (run(data, epochs=1, precision=p) for p in ("float64", "float32", "bfloat16"))
        assert usual.history[0]["train/loss"] == pytest.approx(wide.history[0]["train/loss"], rel=1e-4)
        assert low.history[0]["train/loss"] == pytest.approx(wide.history[0]["train/loss"], rel=5e-2)
        assert low.history[0]["train/loss"] != usual.history[0]["train/loss"]
        assert wide.student.fc.weight.dtype == torch.float64
        assert low.student.fc.weight.dtype == torch.float32  # master weights stay wide

    def test_auto_is_float32_on_the_cpu(self, data: TrainData) -> None:
        assert same_weights(run(data, epochs=1, precision="auto"), run(data, epochs=1))


class TestLearning:
    def test_a_student_learns_the_digits(self) -> None:
        config = DataConfig()
        result = run(split(config, load(config)), epochs=4, ema=0.0)
        losses = [h["train/loss"] for h in result.history]
        assert losses == sorted(losses, reverse=True)
        assert result.accuracy > 0.9
        assert result.accuracy == result.history[-1]["val/accuracy"]

    def test_distillation_brings_the_student_closer_to_its_teacher(self, data: TrainData, teacher: nn.Module) -> None:
        losses = [h["loss/kd"] for h in run(data, teacher, epochs=6).history]
        assert losses[-1] < 0.5 * losses[0]

    def test_gradient_clipping_bounds_a_step(self, data: TrainData) -> None:
        """With momentum and decay off, the weights move by at most lr * clip a step."""
        before = seeded_model("resnet8", 10, seed=0, in_channels=1)
        still = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "lr": 1.0}
        steps = len(data.train) // 64

        def moved(**kw: Any) -> float:
            after = run(data, **still, **kw).student
            pairs = zip(before.parameters(), after.parameters(), strict=True)
            return math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))

        assert moved(grad_clip=1e-3) <= steps * 1e-3 * 1.001
        assert moved() > 10 * steps * 1e-3


CHILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from akd.config import resolve
from akd.data import DataConfig, load, split
from akd.fit import fit

config = DataConfig(subset=300)
train = {"epochs": 4, "lr": 0.1, "schedule": "cosine", "ema": 0.9, "precision": "float32"}

def report(record):
    record.state.save(Path(sys.argv[1]))
    if record.epoch == 2:
        print("second epoch", flush=True)
    if record.epoch == 3:
        time.sleep(60)  # the parent kills here at the latest

fit(resolve({"method": "none", "train": train}), split(config, load(config)), None, report=report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_resumed_equals_undisturbed(data: TrainData, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "second epoch\n"
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
    last = checkpoint.latest(tmp_path)
    assert last is not None
    assert last.name in ("epoch_000002", "epoch_000003")
    whole = run(data, epochs=4, ema=0.9)
    resumed = run(data, epochs=4, ema=0.9, start=last)
    assert same_history(whole, resumed)
    assert same_weights(whole, resumed)
