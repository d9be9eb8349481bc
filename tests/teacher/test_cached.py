"""The kept teacher against the live one: the same training, whoever filled the cache, in every precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd import checkpoint
from akd.config import Experiment, resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data.loader import DeviceLoader, Pass
from akd.data.policies import augments, create_policy
from akd.fit import FitResult, fit, metrics_equal
from akd.methods import hosts, views
from akd.methods.base import needs_of
from akd.teacher import LiveTeacher
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher, attention, cacheable, outputs
from akd.world import ALONE

BATCH = 30
GB = 10**9


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=100, augment="crop_flip", crop_padding=1)
    return split(config, load(config))  # 90 training rows: three steps


@pytest.fixture(scope="module")
def teacher(data: TrainData) -> nn.Module:
    torch.set_num_threads(1)
    train = {"epochs": 6, "batch_size": 15, "lr": 0.05, "precision": "float32"}
    return fit(resolve({"student": "wrn_16_1", "method": "none", "train": train}), data, None).student


def experiment(method: Any, **train: Any) -> Experiment:
    cache = train.pop("cache", {})
    settings = {"epochs": 2, "batch_size": BATCH, "lr": 0.02, "seed": 3, "plan_seed": 4, "threads": 1, **train}
    return resolve({"method": method, "train": settings, "teacher": {"cache": cache}})


def cached(e: Experiment, teacher: nn.Module, root: Path, **kw: Any) -> CachedTeacher:
    settings: dict[str, Any] = {"half": False, "chunk": 16, "part": 32} | kw
    return CachedTeacher(teacher, e.method.needs, Store(root, GB), **settings)


def weights(result: FitResult) -> dict[str, Tensor]:
    return result.student.state_dict()


def same(a: FitResult, b: FitResult) -> bool:
    """Equal bits of weights and of everything an epoch says but what it cost."""
    one, two = weights(a), weights(b)
    histories = len(a.history) == len(b.history) and all(map(metrics_equal, a.history, b.history))
    return histories and all(torch.equal(one[k], two[k]) for k in one)


def apart(a: FitResult, b: FitResult) -> tuple[float, float]:
    """Largest difference of weights, and of epoch losses relative to their size."""
    one, two = weights(a), weights(b)
    losses = [
        abs(x[k] - y[k]) / max(1.0, abs(x[k]))
        for x, y in zip(a.history, b.history, strict=True)
        for k in x
        if "loss" in k
    ]
    return max(float((one[k].double() - two[k].double()).abs().max()) for k in one), max(losses)


METHODS: dict[str, Any] = {
    "kd": "kd",
    "dkd": "dkd",
    "dist": "dist",
    "tekap": "tekap",
    "angular_kd": {"host": "kd", "views": {"name": "angular_kd", "count": 2, "head_warmup_epochs": 1}},
    "mgd": {"host": "kd", "views": {"name": "mgd", "width_low": 8, "width_high": 16}},
    "amd": {"host": {"name": "amd", "weight": 10.0}},
    "at": {"host": {"name": "at", "weight": 10.0}},
    "crd": {"host": {"name": "crd", "negatives": 64, "width": 16}},
    "all": {"host": "dkd", "extra": {"dist": {}, "crd": {"form": "batch", "width": 16}, "at": {"weight": 10.0}}},
}
VIEWS: dict[str, Any] = {
    "standard": None,
    "mixup": "mixup",
    "cutmix": {"name": "cutmix", "form": "only"},
    "pick": {"name": "cutmix_pick", "criterion": "teacher_entropy", "pool": 3, "keep": 2},
}


def spelled(method: Any, augment: Any) -> Any:
    tree = {"views" if method == "tekap" else "host": method} if isinstance(method, str) else method
    return tree if augment is None else {**tree, "augment": augment}


@pytest.mark.parametrize("augment", VIEWS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_with_and_without(
    method: str, augment: str, data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    e = experiment(spelled(METHODS[method], VIEWS[augment]))
    live = LiveTeacher(teacher, e.method.needs)
    whole, kept = fit(e, data, live), cached(e, teacher, tmp_path / "float32")
    mine = fit(e, data, kept)
    far, losses = apart(whole, mine)
    # Rounding alone: a row's outputs depend a little on the other rows of its forward pass.
    assert far < 1e-3, (far, losses)
    assert losses < 1e-4, (far, losses)
    assert kept.asked == live.asked
    half = cached(e, teacher, tmp_path / "float16", half=True)
    far, losses = apart(whole, fit(e, data, half))
    # Half precision: eleven bits of each output, 5e-4 of its size.
    assert far < 2e-2, (far, losses)
    assert losses < 5e-3, (far, losses)
    assert not same(whole, fit(e, data, half))  # it does read what is kept


def test_outputs_row_by_row(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    """Every output of every row of a run, against the network on that very image."""
    method = {"host": "kd", "extra": ["crd", "at"], "augment": {"name": "cutmix_pick", "criterion": "teacher_entropy"}}
    e = experiment(method)
    for half, tolerance in ((False, 1e-5), (True, 1e-3)):
        seen = []

        class Spy(CachedTeacher):
            def __call__(self, images: Tensor, batch: Any, seen: Any = seen) -> Any:
                out = super().__call__(images, batch)
                if batch.views == 2 and -1 in batch.candidate:
                    seen.append((images, out))
                return out

        source = Spy(teacher, e.method.needs, Store(tmp_path / str(half), GB), half=half, chunk=16, part=32)
        fit(e, data, source)
        assert len(seen) == 6
        for images, out in seen:
            with torch.no_grad():
                want = teacher(images)
            assert out.logits.dtype == want.logits.dtype == torch.float32
            assert torch.allclose(out.logits, want.logits, rtol=tolerance, atol=tolerance)
            assert torch.allclose(out.embedding, want.embedding, rtol=tolerance, atol=tolerance)
            assert len(out.maps) == len(want.maps)
            for k in (1, 2, 3):
                assert torch.allclose(out.maps[k], attention(want.maps[k]), rtol=tolerance, atol=tolerance)
            assert out.maps[0].shape == (len(images), 0, 1, 1)  # nobody asked for the stem


@pytest.mark.parametrize("name", hosts.names())
def test_every_method_reads_what_it_says_and_no_more(
    name: str, data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    """Only what a method's needs name is kept for it: what they leave out would be missing."""
    e = experiment(name, epochs=1)
    if not e.needs_teacher or not cacheable(e.method.needs):
        with pytest.raises(ValueError, match="kept are logits"):
            CachedTeacher(teacher, e.method.needs | {"maps:1"}, Store(tmp_path, GB))
        return
    source = cached(e, teacher, tmp_path)
    far, losses = apart(fit(e, data, LiveTeacher(teacher, e.method.needs)), fit(e, data, source))
    assert far < 1e-3
    assert losses < 1e-4
    assert set(source.table.kept) == set(outputs(e.method.needs, 4))  # type: ignore[union-attr]


def test_views_ask_for_what_is_kept() -> None:
    assert all(cacheable(needs_of(views, views.info(name)["config"]())) for name in views.names())


POLICIES: dict[str, dict[str, Any]] = {
    "mixup": {},
    "cutmix": {},
    "cutmix_pick": {"pool": 3},
    "cutout": {},
    "randaugment": {"cutout": 0.3},
    "autoaugment": {},
}


@pytest.mark.parametrize("name", [None, *POLICIES])
def test_the_teacher_is_shown_the_students_images(name: str | None, data: TrainData) -> None:
    """Bit for bit, whatever rows are asked for together."""
    config = None if name is None else augments.info(name)["config"](name=name, **POLICIES[name])
    loader = DeviceLoader(
        data,
        batch_size=BATCH,
        seed=1,
        plan_seed=2,
        device=torch.device("cpu"),
        dtype=torch.float32,
        world=ALONE,
        policy=create_policy(config, data),
    )
    loader.score = lambda images, batch: images.flatten(1).sum(1)
    chunks = {}
    view = Pass(loader, 3)
    for candidate in range(-1, loader.policy.pool if loader.policy else 0):
        for rows in data.train.split(17):
            chunks.update({(int(r), candidate): i for r, i in zip(rows, view.images(rows, candidate), strict=True)})
    seen = set()
    for images, batch in loader.epoch(3):
        assert batch.number == 3
        kinds = [-1] * BATCH if batch.candidate is None else batch.candidate.tolist()
        for image, row, kind in zip(images, batch.index.tolist(), kinds, strict=True):
            assert torch.equal(image, chunks[row, kind]), (row, kind)
            seen.add(kind)
    assert seen == {c for _, c in chunks}


@pytest.mark.parametrize("method", ["kd", "angular_kd", "amd"])
def test_the_same_bits_whoever_filled_and_resumed_from_every_epoch(
    method: str, data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    e = experiment(spelled(METHODS[method], VIEWS["pick"]), epoch_factor=2, ema=0.9)
    root, marks = tmp_path / "cache", tmp_path / "checkpoints"
    first = cached(e, teacher, root, half=True)
    whole = fit(e, data, first, report=lambda r: r.state.save(marks, keep=9) and None)
    assert first.made == 4 * 4 * 90  # four passes; the standard view and three candidates
    second = cached(e, teacher, root, half=True)
    assert same(whole, fit(e, data, second))
    assert (second.made, second.asked) == (0, first.asked)
    warm = method == "angular_kd"  # its head epoch had two of the passes made
    assert sum(h["time/teacher_images"] for h in whole.history) == first.made / (1 + warm)
    # Some parts are there, the others are made by somebody else.
    other = tmp_path / "other"
    shutil.copytree(root, other)
    for path in other.rglob("0001-*.arrow"):
        path.unlink()
    third = cached(e, teacher, other, half=True)
    assert same(whole, fit(e, data, third))
    assert 0 < third.made < first.made
    for path in sorted(other.rglob("*.arrow")):
        assert path.read_bytes() == (root / path.relative_to(other)).read_bytes()
    for path in checkpoint.all_checkpoints(marks):
        for folder in (root, tmp_path / path.name):  # found, or made again
            assert same(whole, fit(e, data, cached(e, teacher, folder, half=True), start=path)), path.name
