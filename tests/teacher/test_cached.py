"""The kept teacher against the live one: the same training, whoever filled the cache, in every precision."""

from __future__ import annotations

import copy
import errno
import importlib
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from workers import together

from akd import checkpoint
from akd.config import Experiment, resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data.loader import DeviceLoader, Pass
from akd.data.policies import augments, create_policy
from akd.fill import fill
from akd.fit import FitResult, fit, make_loader, metrics_equal
from akd.methods import hosts, views
from akd.methods.base import needs_of
from akd.models import Output
from akd.teacher import LiveTeacher, cache
from akd.teacher.cache import Store, decode
from akd.teacher.cached import CachedTeacher, attention, cacheable, outputs
from akd.teacher.identity import fingerprint
from akd.world import ALONE, World

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
    # The student in double precision: what is left is the teacher's own rounding, not what a ReLU makes of it.
    e = experiment(spelled(METHODS[method], VIEWS[augment]), precision="float64")
    live = LiveTeacher(teacher, e.method.needs)
    whole, kept = fit(e, data, live), cached(e, teacher, tmp_path / "float32")
    mine = fit(e, data, kept)
    far, losses = apart(whole, mine)
    # Rounding alone: a row's outputs depend a little on the other rows of its forward pass.
    assert far < 1e-6, (far, losses)
    assert losses < 1e-6, (far, losses)
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
    e = experiment(name, epochs=1, precision="float64")
    if not e.needs_teacher or not cacheable(e.method.needs):
        with pytest.raises(ValueError, match="kept are logits"):
            CachedTeacher(teacher, e.method.needs | {"maps:1"}, Store(tmp_path, GB))
        return
    source = cached(e, teacher, tmp_path)
    far, losses = apart(fit(e, data, LiveTeacher(teacher, e.method.needs)), fit(e, data, source))
    assert far < 1e-4  # published weights reach 3,000
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


# -- who may be beside it ------------------------------------------------------------------------------


def _train(world: World, root: Path, method: Any, settings: dict[str, Any], net: nn.Module) -> Any:
    config = DataConfig(subset=100, augment="crop_flip", crop_padding=1)
    e = experiment(method, **settings)
    source = cached(e, net, root, half=True)
    result = fit(e, split(config, load(config)), source, world=world)
    return result.history, {k: v.clone() for k, v in weights(result).items()}, source.made


@pytest.mark.parametrize("augment", ["standard", "pick"])
def test_workers_share_the_making_and_train_as_one(
    augment: str, data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    method, settings = spelled(METHODS["amd"], VIEWS[augment]), {"precision": "float64"}
    net = copy.deepcopy(teacher)
    _, alone, made = _train(ALONE, tmp_path / "one", method, settings, net)
    results = together(2, tmp_path / "meet", _train, tmp_path / "two", method, settings, net)
    for history, mine, _ in results:
        assert max(float((alone[k].double() - mine[k].double()).abs().max()) for k in alone) < 1e-9
        assert sum(h["time/teacher_images"] for h in history) == made  # of both
    assert sum(m for *_, m in results) == made
    # Whoever made what: one by itself, or one of two.
    files = [
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*.arrow")} for r in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]


def test_parts_of_a_batch_read_their_own_rows(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    method = spelled("kd", {"name": "cutmix_pick", "criterion": "kl", "pool": 2})
    whole, parts = (experiment(method, micro_batch=n, precision="float64", epochs=1) for n in (None, 7))
    live = fit(parts, data, LiveTeacher(teacher, parts.method.needs))
    far, losses = apart(live, fit(parts, data, cached(parts, teacher, tmp_path)))
    assert far < 1e-4
    assert losses < 1e-5
    assert apart(live, fit(whole, data, cached(whole, teacher, tmp_path)))[1] > 1e-5  # statistics of the parts


def test_tables_repeat_and_the_order_does_not(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd", epochs=5, cache={"epochs": 2})
    source = cached(e, teacher, tmp_path)
    five = fit(e, data, source)
    assert source.made == 2 * 90
    assert len(list(tmp_path.glob("*/[0-9]*"))) == 2
    far, losses = apart(five, fit(e, data, LiveTeacher(teacher, e.method.needs)))  # live, it repeats them too
    assert far < 1e-3
    assert losses < 1e-4
    loader, _ = make_loader(e, data, torch.device("cpu"))
    one, two, three = (
        {int(i): x for images, b in loader.epoch(n) for i, x in zip(b.index, images, strict=True)} for n in (1, 2, 3)
    )
    assert all(torch.equal(one[i], three[i]) for i in one)
    assert not all(torch.equal(one[i], two[i]) for i in one)
    assert list(one) != list(three)


# -- what is another key -------------------------------------------------------------------------------


def keys(e: Experiment, data: TrainData, net: nn.Module, root: Path, **kw: Any) -> set[str]:
    source = cached(e, net, root, **kw)
    loader, amp = make_loader(e, data, torch.device("cpu"))
    source.before(Pass(loader, 1), amp)
    return source.keys


def test_everything_the_outputs_depend_on_is_in_the_key(
    data: TrainData, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = experiment("kd")
    (first,) = keys(e, data, teacher, tmp_path)
    found = {"itself": first}

    def another(what: str, of: set[str]) -> None:
        assert not of & set(found.values()), what
        found.update({f"{what} {k}": v for k, v in enumerate(sorted(of))})

    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    another("weights", keys(e, data, other, tmp_path))
    statistics = copy.deepcopy(teacher)
    next(b for b in statistics.buffers() if b.is_floating_point()).add_(1e-3)
    another("statistics", keys(e, data, statistics, tmp_path))
    another("plan", keys(experiment("kd", plan_seed=5), data, teacher, tmp_path))
    another("rows", keys(e, data.with_validation_joined(), teacher, tmp_path))
    config = DataConfig(subset=100, augment="crop_flip", crop_padding=2)
    another("view", keys(e, split(config, load(config)), teacher, tmp_path))
    images = data.dataset.images.clone()
    images[0, 0, 0, 0] += 1
    changed = replace(data, dataset=replace(data.dataset, images=images))
    another("data", keys(e, changed, teacher, tmp_path))
    another("normalise", keys(e, replace(data, dataset=replace(data.dataset, mean=(0.1,))), teacher, tmp_path))
    another("half", keys(e, data, teacher, tmp_path, half=True))
    another("chunk", keys(e, data, teacher, tmp_path, chunk=8))
    another("part", keys(e, data, teacher, tmp_path, part=64))
    another("precision", keys(experiment("kd", precision="bfloat16"), data, teacher, tmp_path))
    another("images", keys(experiment("kd", precision="float64"), data, teacher, tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    another("threads", keys(e, data, teacher, tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "__version__", "3.0")
    another("torch", keys(e, data, teacher, tmp_path))
    monkeypatch.undo()
    policies = {"cutmix": {}, "mixup": {}, "randaugment": {}, "autoaugment": {}, "cutout": {}}
    for name, settings in {**policies, "cutmix ": {"alpha": 0.5}, "cutout ": {"size": 0.25}}.items():
        augment = {"name": name.strip(), "form": "only", **settings}
        another(name, keys(experiment({"host": "kd", "augment": augment}), data, teacher, tmp_path))


def test_the_code_of_a_network_of_ones_own_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = set()
    for text in ("x", "x + 1", "x"):
        code = f"from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return {text}\n"
        (tmp_path / "own_network.py").write_text(code)
        importlib.invalidate_caches()
        sys.modules.pop("own_network", None)
        found.add(fingerprint(importlib.import_module("own_network").Net()))
    assert len(found) == 2


def test_what_the_outputs_do_not_depend_on_is_not(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    first = keys(experiment("kd"), data, teacher, tmp_path)
    for method in ("dkd", "crd", "amd", {"host": "kd", "views": "tekap"}):
        assert keys(experiment(method), data, teacher, tmp_path) == first
    for change in ({"seed": 9}, {"lr": 0.5}, {"batch_size": 7}, {"epochs": 9}, {"epoch_factor": 2}):
        assert keys(experiment("kd", **change), data, teacher, tmp_path) == first
    assert keys(experiment("kd"), data, copy.deepcopy(teacher), tmp_path) == first

    def augmented(**settings: Any) -> set[str]:
        return keys(experiment({"host": "kd", "augment": settings}), data, teacher, tmp_path)

    second = augmented(name="cutmix")
    assert second > first  # beside the standard view
    assert augmented(name="cutmix", form="only") == second - first
    pick = augmented(name="cutmix_pick", criterion="teacher_entropy", pool=3)
    assert pick > second  # its first candidate is the view of cutmix
    assert augmented(name="cutmix_pick", criterion="kl", pool=3, keep=2, temperature=2.0) == pick
    made = cached(experiment("crd"), teacher, tmp_path)
    fit(experiment("crd", epochs=1), data, made)
    assert made.made == 0  # found beside the logits of the others


def test_what_others_will_need_is_kept_when_the_network_runs(
    data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    e = experiment("kd", epochs=1)
    first = cached(e, teacher, tmp_path, keep=frozenset({"embedding", "attention:-1"}))
    fit(e, data, first)
    assert first.made == 90
    for method in ("crd", {"host": {"name": "at", "stages": [-1]}}):
        again = cached(experiment(method), teacher, tmp_path)
        fit(experiment(method, epochs=1), data, again)
        assert again.made == 0
    more = cached(experiment("at"), teacher, tmp_path)
    fit(experiment("at", epochs=1), data, more)
    assert more.made == 90  # other stages


# -- when something goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_damaged_part_is_made_again_with_the_same_bits(
    damage: str, data: TrainData, teacher: nn.Module, tmp_path: Path
) -> None:
    e = experiment("amd")
    whole = fit(e, data, cached(e, teacher, tmp_path))
    (path, *_) = sorted(tmp_path.rglob("*000002/0001-attention3-*"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:50] if damage == "truncated" else content[:-100] + bytes(100))
    again = cached(e, teacher, tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert same(whole, fit(e, data, again))
    assert [str(w.message) for w in told if "is damaged" in str(w.message)] == [
        f"{path} is damaged (its checksum is another one); it is made again"
    ] * (damage != "missing")
    assert again.made == 32
    assert path.read_bytes() == content


def test_files_that_vanish_while_a_run_reads_them(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd", epochs=3)
    whole = fit(e, data, cached(e, teacher, tmp_path))

    def vanish(_: Any) -> None:
        shutil.rmtree(tmp_path)

    again = cached(e, teacher, tmp_path)
    assert same(whole, fit(e, data, again, report=vanish))
    assert again.made == 2 * 90


def test_no_room_for_two_passes(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd", epochs=3)
    whole = fit(e, data, cached(e, teacher, tmp_path / "much"))
    for _ in range(2):
        source = CachedTeacher(teacher, e.method.needs, Store(tmp_path / "little", 1), half=False, chunk=16, part=32)
        assert same(whole, fit(e, data, source))
        assert len(list((tmp_path / "little").glob("*/[0-9]*"))) == 1
    assert source.made == 3 * 90


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, PermissionError(errno.EACCES, "Permission denied")], ids=["full", "closed"])
def test_where_nothing_can_be_kept_the_network_is_run(
    error: OSError, data: TrainData, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = experiment("kd")
    live = LiveTeacher(teacher, e.method.needs)
    want = fit(e, data, live)
    if error is FULL:
        monkeypatch.setattr("akd.teacher.cached.RESIDENT", 1)  # too much for memory

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cache, "_flushed", refuse)
    source = cached(e, teacher, tmp_path)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*; it is run") as told:
        assert same(want, fit(e, data, source))
    assert len(told) == 1
    assert source.asked == live.asked
    with pytest.raises(OSError, match="cannot be kept"):
        fill(e, data, cached(e, teacher, tmp_path), 1)


@pytest.mark.parametrize("method", ["kd", {"host": "at", "augment": "cutmix"}])
def test_on_a_full_disk_a_run_has_the_values_it_would_find(
    method: Any, data: TrainData, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded to half precision: a result must not tell whether the disk was full."""
    e = experiment(method)

    def source(folder: str) -> CachedTeacher:
        return CachedTeacher(teacher, e.method.needs, Store(tmp_path / folder, GB), half=True, chunk=16, part=32)

    want = fit(e, data, source("kept"))
    assert not same(want, fit(e, data, LiveTeacher(teacher, e.method.needs)))
    monkeypatch.setattr(cache, "_flushed", lambda *_: (_ for _ in ()).throw(FULL))
    mine = source("full")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*full"):
        assert same(want, fit(e, data, mine))
    assert mine.made == mine.asked
    assert not list((tmp_path / "full").rglob("*.arrow"))


def test_filled_ahead(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment(spelled("kd", VIEWS["pick"]), cache={"epochs": 2}, epochs=4)
    ahead, told = cached(e, teacher, tmp_path), []
    fill(e, data, ahead, 9, report=lambda r: told.append((r.epoch, r.metrics["time/teacher_images"], r.final)))
    assert told == [(1, 360, False), (2, 360, True)]  # there are no more than two tables
    source = cached(e, teacher, tmp_path)
    fit(e, data, source)
    assert source.made == 0


def test_large_values_of_one_part_do_not_overflow(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd", epochs=1)
    loader, amp = make_loader(e, data, torch.device("cpu"))
    brightness = Pass(loader, 1).images(data.train).mean((1, 2, 3))
    edge = float(brightness.topk(2).values.mean())  # one image is beyond it

    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = teacher

        def forward(self, x: Tensor) -> Output:
            out = self.net(x)
            return out._replace(logits=out.logits + 1e5 * (x.mean((1, 2, 3)) > edge)[:, None])

    source = cached(e, Loud(), tmp_path, half=True)
    source.before(Pass(loader, 1), amp)
    kinds = {decode(p).values.dtype for p in tmp_path.rglob("*.arrow")}
    assert kinds == {torch.float16, torch.float32}
    for images, batch in loader.epoch(1):
        with torch.no_grad():
            want = source.model(images)
        out = source(images, batch)
        assert out.logits.isfinite().all()
        assert torch.allclose(out.logits, want.logits, rtol=1e-3, atol=1e-3)


def test_a_pass_stays_while_a_run_is_in_it(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd", epochs=3)
    there: list[list[str]] = []

    def removing(_: Any) -> None:
        Store(tmp_path, 0).make_room(0)
        there.append(sorted(p.name for p in tmp_path.glob("*/[0-9]*")))

    source = cached(e, teacher, tmp_path)
    fit(e, data, source, report=removing)
    assert there == [["000001"], ["000002"], ["000003"]]
    del source
    Store(tmp_path, 0).make_room(0)
    assert not list(tmp_path.glob("*/[0-9]*"))


@pytest.mark.parametrize("half", [True, False])
def test_passes_too_large_for_memory_are_read_row_by_row(
    half: bool, data: TrainData, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = experiment(spelled(METHODS["amd"], VIEWS["pick"]))
    whole = fit(e, data, cached(e, teacher, tmp_path, half=half))
    monkeypatch.setattr("akd.teacher.cached.RESIDENT", 0)
    assert same(whole, fit(e, data, cached(e, teacher, tmp_path, half=half)))


def test_bfloat16_comes_back_as_it_was(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("crd", precision="bfloat16", epochs=1)
    source = cached(e, teacher, tmp_path, half=True)
    far, losses = apart(fit(e, data, LiveTeacher(teacher, e.method.needs)), fit(e, data, source))
    assert source.table is not None
    assert source.table.kept["embedding"].dtype == torch.bfloat16
    assert far < 2e-2
    assert losses < 2e-2


def test_a_batch_of_another_pass_is_refused(data: TrainData, teacher: nn.Module, tmp_path: Path) -> None:
    e = experiment("kd")
    source = cached(e, teacher, tmp_path)
    loader, amp = make_loader(e, data, torch.device("cpu"))
    source.before(Pass(loader, 1), amp)
    images, batch = next(loader.epoch(2))
    with pytest.raises(ValueError, match="the batch is of pass 2, at hand is 1"):
        source(images, batch)
