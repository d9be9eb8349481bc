"""What keeps the loop fast: no reads inside an epoch, the layout of networks, the allocator's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from akd.config import resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data.loader import DeviceLoader, Pass
from akd.data.policies import augments, create_policy
from akd.epochs import train_epoch, train_heads
from akd.fit import _networks, _scorer, fit
from akd.metrics import Mean
from akd.models import seeded_model
from akd.state import TrainState
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.world import ALONE
from tests.contract.test_methods import NoReads


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=300)
    return split(config, load(config))


def parts(data: TrainData, method: Any, **train: Any) -> tuple[TrainState, DeviceLoader, Stepper]:
    """What the loop runs on."""
    e = resolve({"method": method, "train": {"lr": 0.05, "precision": "float32", **train}})
    source = LiveTeacher(seeded_model("wrn_16_1", 10, seed=77, in_channels=1), e.method.needs)
    loader = DeviceLoader(
        data,
        batch_size=64,
        seed=0,
        plan_seed=0,
        device=torch.device("cpu"),
        dtype=torch.float32,
        world=ALONE,
        policy=create_policy(e.method.augment, data),
    )
    state, built = _networks(e, data, source, loader, ALONE)
    loader.score = _scorer(loader, state, source, amp=False)
    return state, loader, Stepper(state.student, built, source, world=ALONE, amp=False, micro_batch=e.train.micro_batch)


AUGMENTED = [{"host": "kd", "augment": {"name": n, "form": f}} for n in augments.names() for f in ("only", "second")]


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("none", {}),
        ("kd", {"ema": 0.9, "grad_clip": 1.0, "nesterov": True, "micro_batch": 16}),
        ("angular_kd", {"label_smoothing": 0.1}),
        *((method, {}) for method in AUGMENTED),
    ],
    ids=str,
)
def test_nothing_is_read_from_the_device_inside_an_epoch(
    method: Any, train: dict[str, Any], data: TrainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read would make the GPU wait for the host; the sums are read once, at the end."""
    state, loader, stepper = parts(data, method, **train)
    monkeypatch.setattr(Mean, "read", lambda self, world: {})
    with NoReads():
        if state.method.warmup_epochs:
            train_heads(state, loader, stepper, 1)
        train_epoch(state, loader, stepper, 1)


@pytest.mark.parametrize("method", ["kd", "angular_kd", "amd", "crd", *AUGMENTED], ids=str)
def test_kept_outputs_are_read_without_waiting(method: Any, data: TrainData, tmp_path: Path) -> None:
    state, loader, stepper = parts(data, method)
    assert isinstance(stepper.source, LiveTeacher)
    source = CachedTeacher(stepper.source.model, stepper.method.needs, Store(tmp_path, 10**9))
    stepper.source, loader.score = source, _scorer(loader, state, source, amp=False)
    source.before(Pass(loader, 1), amp=False)
    images = list(loader.epoch(1))[:2]
    with NoReads():
        for some, batch in images:
            source(some, batch)
    assert source.table is not None
    assert (source.asked > 0, source.table.number) == (True, 1)


def test_momentum_comes_back_in_the_layout_of_its_parameter(data: TrainData, tmp_path: Path) -> None:
    """The fused optimizer reads both in the order they lie in memory."""
    paths: list[Path] = []
    e = resolve({"method": "none", "train": {"epochs": 2, "lr": 0.05, "ema": 0.9, "precision": "float32"}})
    fit(e, data, None, report=lambda record: paths.append(record.state.save(tmp_path)))
    state, _, _ = parts(data, "none", ema=0.9)
    state.student.to(memory_format=torch.channels_last)
    state.load(paths[-1])
    strides = [p.stride() for p in state.parameters if p.ndim == 4]
    assert any(s[1] == 1 for s in strides)
    for p in state.parameters:
        assert state.optimizer.state[p]["momentum_buffer"].stride() == p.stride()


def test_compiled_follows_the_eager_loop(data: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile's front end (the code generator needs a compiler): same weights, same names."""
    real, calls = torch.compile, []

    def compiled(net: Any, **options: Any) -> Any:
        calls.append(options)
        return real(net, backend="aot_eager", dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", compiled)
    source = LiveTeacher(seeded_model("wrn_16_1", 10, seed=77, in_channels=1))
    results = []
    for how in ("off", "on"):
        train = {"epochs": 2, "lr": 0.05, "ema": 0.9, "precision": "float64", "compile": how, "micro_batch": 32}
        results.append(fit(resolve({"method": "kd", "train": train}), data, source).student.state_dict())
    assert calls == [{"dynamic": False, "mode": None}]
    assert results[0].keys() == results[1].keys()
    assert all(torch.allclose(v, results[1][k], rtol=1e-7, atol=1e-9) for k, v in results[0].items())


ALLOCATOR = """
import resource, torch
from akd.allocation import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(5_000_000).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize("own", [False, True])
def test_memory_is_kept_between_steps(own: bool) -> None:
    """20 MB again and again are not fetched anew page by page, unless the user has settings of their own."""
    env = {"PATH": "/usr/bin"} | ({"MALLOC_MMAP_THRESHOLD_": "1000000"} if own else {})
    done = subprocess.run([sys.executable, "-c", ALLOCATOR], env=env, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 50_000) is own  # of 20 x 4,882
