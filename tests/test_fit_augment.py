"""Training with strong views and with long schedules: exact repetition, and who gets which label."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd import checkpoint
from akd.champion import at_length_of
from akd.config import Experiment, resolve
from akd.data import Batch, DataConfig, TrainData, load, split
from akd.errors import ExperimentError
from akd.fit import FitResult, check_data, fit, metrics_equal
from akd.methods.kd import KD
from akd.methods.none import StudentAlone
from akd.metrics import step_accuracy
from akd.models import Output, seeded_model
from akd.prepare import prepare
from akd.teacher import LiveTeacher
from akd.teacher.keep import teacher_hash

BATCH, STEPS = 60, 4


@pytest.fixture(scope="module")
def data() -> TrainData:
    """270 training images: four steps of 60 a pass."""
    config = DataConfig(subset=300)
    return split(config, load(config))


@pytest.fixture
def teacher() -> nn.Module:
    return seeded_model("wrn_16_1", 10, seed=77, in_channels=1)


def experiment(method: Any, **train: Any) -> Experiment:
    values = {"epochs": 2, "lr": 0.1, "batch_size": BATCH, "precision": "float32"} | train
    return resolve({"method": method, "train": values})


def run(method: Any, data: TrainData, teacher: nn.Module | None, **kw: Any) -> FitResult:
    hooks = {k: kw.pop(k) for k in ("start", "report") if k in kw}
    e = experiment(method, **kw)
    return fit(e, data, LiveTeacher(teacher) if teacher and e.needs_teacher else None, **hooks)


def same(a: FitResult, b: FitResult) -> bool:
    one, two = a.student.state_dict(), b.student.state_dict()
    histories = len(a.history) == len(b.history) and all(map(metrics_equal, a.history, b.history))
    return histories and all(torch.equal(one[k], two[k]) for k in one)


METHODS: dict[str, dict[str, Any]] = {
    "cutmix": {"host": "kd", "augment": "cutmix"},
    "pick-kl": {"host": "kd", "augment": {"name": "cutmix_pick", "pool": 3, "keep": 2}},
    "pick-student-only": {
        "host": "none",
        "augment": {"name": "cutmix_pick", "criterion": "student_entropy", "form": "only"},
    },
    "randaugment-only": {"host": "none", "augment": {"name": "randaugment", "form": "only"}},
    "views": {
        "host": "kd",
        "views": {"name": "angular_kd", "count": 2, "head_warmup_epochs": 1},
        "augment": {"name": "cutmix_pick", "criterion": "teacher_entropy"},
    },
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("train", [{}, {"epoch_factor": 2, "ema": 0.9}], ids=["plain", "long"])
def test_same_bits_and_resume_from_every_checkpoint(
    method: dict[str, Any], train: dict[str, Any], data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    whole = run(method, data, teacher, report=lambda r: r.state.save(tmp_path, keep=9) and None, **train)
    torch.rand(3)
    assert same(whole, run(method, data, teacher, **train))
    paths = checkpoint.all_checkpoints(tmp_path)
    assert len(paths) == 2
    for path in paths:
        assert same(whole, run(method, data, teacher, start=path, **train)), path.name
    assert not same(whole, run({**method, "augment": None}, data, teacher, **train))


class Seen:
    """What a method was given, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type):
        self.calls: list[tuple[Output, Output | None, Batch, dict[str, Tensor]]] = []
        original = kind.forward  # type: ignore[attr-defined]

        def forward(method: Any, student: Output, taught: Output | None, batch: Batch) -> dict[str, Tensor]:
            terms = original(method, student, taught, batch)
            self.calls.append((student, taught, batch, terms))
            return terms

        monkeypatch.setattr(kind, "forward", forward)


def cross_entropy(logits: Tensor, label: Tensor) -> float:
    return -torch.log_softmax(logits.double(), 0)[int(label)].item()


def test_a_second_view_has_the_teachers_labels_and_no_other(
    data: TrainData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch, KD)
    result = run({"host": "kd", "augment": "cutmix"}, data, teacher, epochs=1)
    assert len(seen.calls) == STEPS
    hits = []
    for student, taught, batch, terms in seen.calls:
        assert taught is not None
        assert student.logits.shape == taught.logits.shape == (2 * BATCH, 10)
        hard = [cross_entropy(student.logits[i], batch.target[i]) for i in range(BATCH)]
        assert terms["ce"].item() == pytest.approx(sum(hard) / BATCH, rel=1e-5)
        soft = 0.0
        for i in range(2 * BATCH):  # standard and strong rows alike
            q, p = (torch.log_softmax(o.logits[i].double() / 4, 0) for o in (taught, student))
            soft += 16 * (q.exp() * (q - p)).sum().item() / (2 * BATCH)
        assert terms["kd"].item() == pytest.approx(soft, rel=1e-4)
        hits += (student.logits.argmax(1) == batch.target)[:BATCH].tolist()
    assert result.history[0]["train/accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-9)


@pytest.mark.parametrize("host", ["none", "kd"])
def test_the_only_view_has_mixed_labels(
    host: str, data: TrainData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch, {"none": StudentAlone, "kd": KD}[host])
    result = run({"host": host, "augment": {"name": "mixup", "form": "only"}}, data, teacher, epochs=1)
    correct = 0.0
    for student, _, batch, terms in seen.calls:
        want = 0.0
        for i in range(BATCH):
            lam = batch.lam[i].item()
            want += lam * cross_entropy(student.logits[i], batch.target[i])
            want += (1 - lam) * cross_entropy(student.logits[i], batch.target2[i])
            found = student.logits[i].argmax()
            correct += lam * (found == batch.target[i]).item() + (1 - lam) * (found == batch.target2[i]).item()
        assert terms["ce"].item() == pytest.approx(want / BATCH, rel=1e-5)
    assert result.history[0]["train/accuracy"] == pytest.approx(correct / (STEPS * BATCH), abs=1e-6)


@pytest.mark.parametrize("criterion", ["teacher_entropy", "student_entropy", "kl"])
def test_one_pass_each_for_training_and_scoring_beside_them(
    criterion: str, data: TrainData, teacher: nn.Module
) -> None:
    """The teacher sees a step's candidates, then its images, at once; scoring counts in no BatchNorm statistics."""
    sizes: list[int] = []

    class Spy(LiveTeacher):
        def __call__(self, images: Tensor, batch: Batch) -> Output:
            sizes.append(len(images))
            return super().__call__(images, batch)

    e = experiment({"host": "kd", "augment": {"name": "cutmix_pick", "criterion": criterion, "pool": 2}}, epochs=1)
    source = Spy(teacher)
    result = fit(e, data, source)
    asked = 1 if criterion == "student_entropy" else 2
    assert sizes == STEPS * asked * [2 * BATCH]
    assert (source.asked, source.made) == (sum(sizes), sum(sizes))
    history = result.history[0]
    assert history["time/teacher_asked"] == history["time/teacher_images"] == sum(sizes)
    counts = {int(v) for k, v in result.student.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {STEPS}


def test_picking_changes_what_is_learned_and_pool_one_does_not_pick(data: TrainData, teacher: nn.Module) -> None:
    def with_pool(**pick: Any) -> FitResult:
        return run({"host": "kd", "augment": {"name": "cutmix_pick", **pick}}, data, teacher, epochs=1)

    plain = run({"host": "kd", "augment": "cutmix"}, data, teacher, epochs=1)
    assert same(plain, with_pool(pool=1))
    assert not same(plain, with_pool(pool=2))
    assert not same(with_pool(pool=2), with_pool(pool=2, criterion="teacher_entropy"))


class TestAccuracy:
    def batch(self, view: list[int], lam: list[float]) -> Batch:
        target, second = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1])
        index = torch.arange(3)
        return Batch(index, target, second, torch.tensor(lam), torch.tensor(view), 1, 0, torch.Generator())

    @pytest.mark.parametrize(
        ("view", "lam", "want"),
        [
            ([0, 0, 0], [1, 1, 1], 2 / 3),
            ([0, 0, 1], [1, 1, 1], 1.0),
            ([1, 0, 0], [1, 0.75, 0.25], 0.75),
            ([0, 0, 0], [0.5, 0.75, 0.25], (1 + 0.75 + 0.75) / 3),
            ([1, 1, 1], [1, 1, 1], 0.0),
        ],
    )
    def test_by_hand(self, view: list[int], lam: list[float], want: float) -> None:
        logits = torch.eye(3)[[0, 1, 1]]
        assert step_accuracy(logits, self.batch(view, lam)).item() == pytest.approx(want)


class TestLongSchedules:
    @pytest.mark.parametrize("schedule", [{"schedule": "constant"}, {"schedule": "cosine"}], ids=str)
    def test_a_factor_is_as_many_epochs_reported_together(self, schedule: dict[str, Any], data: TrainData) -> None:
        short = run("none", data, None, epochs=4, **schedule)
        long = run("none", data, None, epochs=2, epoch_factor=2, **schedule)
        assert [h["epoch"] for h in long.history] == [1, 2]
        assert long.epochs_run == 2
        one, two = short.student.state_dict(), long.student.state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)
        assert [h["val/accuracy"] for h in long.history] == [h["val/accuracy"] for h in short.history[1::2]]
        assert long.history[1]["lr"] == short.history[3]["lr"]
        assert long.history[1]["train/loss"] == pytest.approx(
            (short.history[2]["train/loss"] + short.history[3]["train/loss"]) / 2
        )

    def test_decay_epochs_are_stretched_with_it(self, data: TrainData) -> None:
        steps = {"schedule": "step", "decay_epochs": [1]}
        stretched = {"schedule": "step", "decay_epochs": [2]}
        one = run("none", data, None, epochs=4, **stretched).student.state_dict()
        two = run("none", data, None, epochs=2, epoch_factor=2, **steps).student.state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)

    def test_controls_are_as_long_as_the_winner_in_the_final_training(self) -> None:
        controls = {name: experiment(name) for name in ("none", "kd")}
        got = at_length_of(experiment("kd", epoch_factor=4), controls)
        for name, control in controls.items():
            assert got[name] == replace(control, train=replace(control.train, epoch_factor=4))

    def test_controls_of_a_study_are_stretched_with_it(self, tmp_path: Path) -> None:
        tree = {
            "data": {"name": "digits", "subset": 300},
            "method": {"host": "kd", "augment": "cutmix"},
            "train": {"epoch_factor": 3},
            "space": {"train.lr": {"type": "float", "low": 0.1, "high": 0.2}},
        }
        ready = prepare(resolve(tree))
        assert {e.train.epoch_factor for e in ready.controls.values()} == {3}
        assert {e.method.augment for e in ready.controls.values()} == {None}

    def test_teachers_kept_before_are_found(self, data: TrainData) -> None:
        plain, one = resolve({}), resolve({"train": {"epoch_factor": 5}})
        assert teacher_hash(plain, data) == teacher_hash(one, data)
        two = resolve({"teacher": {"train": {"epoch_factor": 2}}})
        assert teacher_hash(plain, data) != teacher_hash(two, data)


def test_images_that_cannot_be_mixed_are_refused_before_anything_starts(data: TrainData) -> None:
    lonely = replace(data, train=data.train[:1])
    with pytest.raises(ExperimentError, match=r"method\.augment = 'mixup': mixes training images, and there is 1"):
        check_data(experiment({"host": "kd", "augment": "mixup"}, batch_size=1), lonely)


@pytest.mark.long
def test_a_search_over_augmentations_of_digits_ends_with_a_student(tmp_path: Path) -> None:
    """A real search: CutMix as a second view, picked or not, and how many passes an epoch has."""
    import akd

    tree = {
        "data": {"name": "digits", "validation": 0.25},
        "teacher": {"name": "wrn_16_2", "train": {"epochs": 8, "lr": 0.1}},
        "student": "resnet8",
        "method": {"host": {"name": "kd", "weight": 1.8, "ce_weight": 0.1}, "augment": {"name": "cutmix"}},
        "train": {"epochs": 6, "lr": 0.1},
        "search": {"trials": 4, "grace": 2, "concurrent": 1, "champion_seeds": 1},
        "space": {
            "method.augment.name": {"choices": ["none", "cutmix", "cutmix_pick"]},
            "train.epoch_factor": {"choices": [1, 2]},
        },
    }
    result = akd.search(tree, name="augmentation", output=tmp_path)
    assert math.isfinite(result.champion["test"]["mean"])
    assert result.champion["test"]["mean"] > 0.85
