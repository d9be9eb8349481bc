"""Shares of a GPU: how many trials fit, and that a trial is held to its share. No GPU is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from akd import packing
from akd.config import SearchConfig, load, resolve
from akd.costs import Input
from akd.errors import ExperimentError
from akd.mirror import Mirror
from akd.packing import Memory, limit_memory, rehearse, share_of
from akd.places import Resources, share
from akd.session import Session

GB = 10**9


@pytest.mark.parametrize(
    ("trial", "whole", "cpus", "wanted"),
    [
        (10 * GB, 80 * GB, 16, 1 / 6),  # 76 / 12
        (30 * GB, 80 * GB, 16, 1 / 2),
        (50 * GB, 80 * GB, 16, 1),
        (90 * GB, 80 * GB, 16, 1),  # more than there is: whole, and it fails with its reason
        (1 * GB, 80 * GB, 16, 1 / packing.MOST),
        (1 * GB, 80 * GB, 3, 1 / 3),  # each trial needs a CPU
        (1 * GB, 80 * GB, 0.5, 1),
        (0, 80 * GB, 4, 1 / 4),
    ],
)
def test_share_from_memory(trial: int, whole: int, cpus: float, wanted: float) -> None:
    found = share_of(Memory(trial, whole), cpus)
    assert wanted - 1e-4 <= found <= wanted
    n = round(1 / found)
    assert n * found <= 1
    assert n == 1 or n * trial * packing.MARGIN <= whole * (1 - packing.RESERVE)
    assert found * 10_000 == pytest.approx(round(found * 10_000))  # what Ray can count


@pytest.mark.parametrize(
    ("gpus", "nodes", "wanted"),
    [
        # A part of a GPU is of one GPU: two fit on each, not five on both.
        (0.4, [{"CPU": 16, "GPU": 2}], Resources(3, 0.4, 4)),
        (0.25, [{"CPU": 8, "GPU": 1}], Resources(2, 0.25, 4)),
        (0.3333, [{"CPU": 9, "GPU": 3}], Resources(1, 0.3333, 9)),
        # Until it is measured, one.
        ("auto", [{"CPU": 8, "GPU": 2}], Resources(4, 1, 2)),
        ("auto", [{"CPU": 8}], Resources(1, 0, 8)),
    ],
)
def test_places(gpus: Any, nodes: list[dict[str, float]], wanted: Resources) -> None:
    assert share(SearchConfig(gpus_per_trial=gpus), nodes) == wanted


def test_mistakes() -> None:
    with pytest.raises(ExperimentError, match=r"gpus_per_trial = 1.5: must be a part of one GPU or a whole number"):
        share(SearchConfig(gpus_per_trial=1.5), [{"CPU": 8, "GPU": 4}])
    with pytest.raises(ExperimentError, match="must be a number >= 0 or auto or null"):
        resolve({"search": {"gpus_per_trial": "half"}})
    assert load(None, {"search.gpus_per_trial": "auto"}).search.gpus_per_trial == "auto"
    assert resolve({"search": {"gpus_per_trial": "auto"}}).to_dict()["search"]["gpus_per_trial"] == "auto"


def test_a_part_limits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    limit_memory(0.25)  # there is no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpus in (0.25, 0.0, 1.0, 2.0):
        limit_memory(gpus)
    assert limits == [0.25]


def test_no_rehearsal_without_a_gpu_and_none_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = resolve({"method": "none"})
    assert rehearse(experiment, None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(packing, "_rehearsed", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    assert rehearse(experiment, None) is None


def test_a_rehearsal_measures_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a GPU's counters in place of its own."""
    seen: list[Any] = []

    def on_cpu(experiment: Any, data: Any, source: Any, **options: Any) -> Any:
        seen.append((experiment, data, options))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (75 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 4 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 9 * GB)
    monkeypatch.setattr(packing, "fit", on_cpu)
    experiment = resolve({"method": "none", "train": {"batch_size": 32, "epochs": 50}})
    assert rehearse(experiment, None) == Memory(10 * GB, 80 * GB)  # 9 and the 1 that torch did not reserve
    short, data, options = seen[0]
    assert (short.train.epochs, short.train.batch_size) == (1, 32)
    assert len(data.train) == 8 * 32
    assert len(data.val) > 0
    assert options == {"device": "cuda"}


PACKED = """
import json, os, sys
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
from pathlib import Path
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
from akd import cluster, trial, tuning
from akd.config import resolve
from akd.costs import Input
from akd.job import Job
from akd.mirror import Mirror
from akd.places import share
from akd.prepare import prepare
from akd.searcher import StudySearcher, open_study
from akd.session import Session
folder = Path(sys.argv[1])
e = resolve({
    "data": {"subset": 200}, "method": "none", "student": "resnet8", "train": {"epochs": 3, "lr": 0.1},
    "search": {"trials": 6, "scheduler": "none", "gpus_per_trial": json.loads(sys.argv[2]), "cpus_per_trial": 0.5},
    "space": {"train.lr": {"type": "float", "low": 0.05, "high": 0.2}},
})
ready = prepare(e)
session = Session(e.search, None, Mirror(None, Path()))
session.nodes = cluster.nodes()
session.resources = share(e.search, session.nodes)
resources = session.measured([e], None)
session.private = False  # the clock is a task with a trial's share of this Ray
(found,) = session.clocked({"resnet8": ready.experiment}, Input.of(ready.data), ["latency_1"]).values()
assert 0 < found["latency_1"] < 10_000, found
searcher = StudySearcher(ready.experiment, ready.space, open_study(folder / "optuna.log", "s"), folder, {})
most = [0]
def on_epoch(path, epoch, accuracy):
    most[0] = max(most[0], len(searcher.live))
    gpus.add(ray.available_resources().get("GPU", 0.0))
gpus = set()
tuning.run(ready.experiment, searcher, resources, Job(""), on_epoch=on_epoch)
print(json.dumps([resources.gpus, resources.concurrent, most[0], min(gpus)]))
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gpus", "wanted"), [pytest.param("0.5", [0.5, 2, 2, 0.0], marks=pytest.mark.long), ('"auto"', [1.0, 1, 1, 0.0])]
)
def test_trials_share_a_gpu_of_ray(gpus: str, wanted: list[float], tmp_path: Path) -> None:
    """A Ray that counts one GPU; training is on the CPU, where a rehearsal measures nothing."""
    done = subprocess.run(
        [sys.executable, "-c", PACKED, str(tmp_path), gpus], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
    assert len(list(tmp_path.glob("trials/*/history.jsonl"))) == 6


def test_the_students_are_timed_where_trials_will_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process where trials are on the CPUs of a Ray of its own, else in one task with a worker's share."""
    import ray

    from akd import costs

    asked: list[Any] = []
    students, made_for = {"resnet8": resolve({}), "resnet14": resolve({"student": "resnet14"})}, Input(10, 1, (8, 8))

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda function: type("Task", (), {"remote": staticmethod(lambda *a: (function, a))})

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda task: task)
    monkeypatch.setattr(costs, "clocked", lambda *a: ("here", a))
    session = Session(SearchConfig(), None, Mirror(None, tmp_path))
    for private, resources, wanted in [
        (True, Resources(2, 0, 4), None),
        (False, Resources(2, 0, 4), (0, 2)),
        (True, Resources(4, 0.5, 4), (0.5, 4)),
        (True, Resources(8, 4, 1, workers=4), (1, 2)),
    ]:
        session.private, session.resources = private, resources
        found: Any = session.clocked(students, made_for, ["latency_1"])
        if wanted is None:
            assert found == ("here", (students, made_for, ["latency_1"]))
            assert asked == []
        else:
            assert found == (costs.clocked, (students, made_for, ["latency_1"]))
            (options,) = asked
            assert (options["num_gpus"], options["num_cpus"], options["max_calls"]) == (*wanted, 1)
            asked.clear()


def test_the_largest_batch_is_rehearsed_and_the_share_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Ray would give is made up; what is asked for, and what is made of the answer, is not."""
    import ray

    asked: list[Any] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        # The second student takes the most.
        return lambda function: type(
            "Task",
            (),
            {"remote": staticmethod(lambda _, e, __: Memory((20 if e.student.name == "vgg8" else 5) * GB, 80 * GB))},
        )

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda memory: memory)
    session = Session(SearchConfig(gpus_per_trial="auto"), None, Mirror(None, tmp_path))
    session.nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}]
    session.resources = share(session.search, session.nodes)
    assert session.resources.concurrent == 2
    found = session.measured([resolve({"student": name}) for name in ("resnet8", "vgg8", "resnet14")], None)
    assert found == session.resources == Resources(2, 0.3333, 6)
    assert asked == [{"num_gpus": 1, "num_cpus": 1, "max_calls": 1, "max_retries": 0}]
