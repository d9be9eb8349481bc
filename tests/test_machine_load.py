"""How busy the steering machine is: sampled by MLflow's gauges, written by the tracker's thread, into one run only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from akd import folder as run_folder
from akd import machine_load
from akd.config import resolve
from akd.folder import Run
from akd.logged import default_uri
from akd.machine_load import MachineLoad
from akd.tracking import Tracker


class Gauge:
    """Counts its questions; fails when told to."""

    def __init__(self, name: str, value: float):
        self.name, self.value, self.asked, self.broken = name, value, 0, False

    def collect_metrics(self) -> None:
        self.asked += 1
        if self.broken:
            raise OSError("the device is being reset")

    def aggregate_metrics(self) -> dict[str, float]:
        return {self.name: self.value, "disk_usage_megabytes": 1.0}

    def clear_metrics(self) -> None:
        pass


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> list[Gauge]:
    found = [Gauge("cpu_utilization_percentage", 40.0), Gauge("gpu_0_utilization_percentage", 90.0)]
    monkeypatch.setattr(machine_load, "_gauges", lambda: found)
    return found


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "s"
    run_folder.create(folder, resolve({}), Run("study", "s", started=time.time() - 100))
    return folder


class TestSamples:
    def test_of_this_machine(self) -> None:
        load = MachineLoad(time.time() - 50, every_s=0.0)
        assert load.sample()
        assert load.sample()
        found = {m.key: m for m in load.waiting()}
        shares = {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"}
        assert {f"system/{name}" for name in shares} <= found.keys()
        assert all(0 <= found[f"system/{name}"].value <= 100 for name in shares)
        assert found["system/system_memory_usage_percentage"].step in (50, 51)
        assert len(found) < 30

    def test_the_first_says_nothing_of_the_cpus(self, gauges: list[Gauge]) -> None:
        """They are asked for their share since the last question."""
        load = MachineLoad(time.time(), every_s=0.0)
        load.sample()
        assert [m.key for m in load.waiting()] == ["system/gpu_0_utilization_percentage"]
        load.sample()
        assert [m.value for m in load.waiting()] == [90.0, 40.0, 90.0]

    def test_not_before_it_is_time(self, gauges: list[Gauge]) -> None:
        load = MachineLoad(time.time(), every_s=60.0)
        assert load.wait_s() == 0
        assert [load.sample(), load.sample()] == [True, False]
        assert 50 < load.wait_s() <= 60
        assert gauges[0].asked == 1

    def test_a_gauge_that_fails_is_passed_over(self, gauges: list[Gauge]) -> None:
        load = MachineLoad(time.time(), every_s=0.0)
        load.sample()
        gauges[1].broken = True
        load.sample()
        assert [m.key for m in load.waiting()][1:] == ["system/cpu_utilization_percentage"]

    def test_no_number_is_not_kept(self, gauges: list[Gauge]) -> None:
        gauges[1].value = float("nan")
        load = MachineLoad(time.time(), every_s=0.0)
        assert not load.sample()
        assert load.waiting() == []

    def test_what_waits_is_bounded(self, gauges: list[Gauge], monkeypatch: pytest.MonkeyPatch) -> None:
        load = MachineLoad(time.time(), every_s=0.0)
        for _ in range(machine_load._MOST + 10):
            load.sample()
        assert len(load._waiting) == machine_load._MOST


class TestTracked:
    def history(self, study: Path, run_id: str) -> list[tuple[float, int, int]]:
        client = MlflowClient(default_uri(study.parent))
        return [(m.value, m.step, m.timestamp) for m in client.get_metric_history(run_id, GPU)]

    def test_the_study_s_run_alone_has_it(
        self, study: Path, gauges: list[Gauge], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While its server is away now and then: nothing is lost, nothing is there twice, no trial waits."""
        monkeypatch.setattr(machine_load, "EVERY_S", 0.1)
        monkeypatch.setattr(MachineLoad.__init__, "__defaults__", (0.1,))
        real, tries, said = MlflowClient.log_batch, [0], []

        def now_and_then(self: MlflowClient, *args: Any, **kw: Any) -> Any:
            tries[0] += 1
            if tries[0] % 3 == 0:
                real(self, *args, **kw)  # taken, but the answer is lost
                raise ConnectionError("cut off")
            return real(self, *args, **kw)

        trial = study / "trials" / "00000"
        run_folder.create(trial, resolve({}), Run("trial", "trial 0", number=0))
        monkeypatch.setattr(MlflowClient, "log_batch", now_and_then)
        uri = default_uri(study.parent)
        one = Tracker(uri, study.parent, study, "load", load=True, on_trouble=said.append, retry_s=0.01)
        one.changed(trial)
        wait_for(lambda: gauges[1].asked >= 8)
        one.changed(study)
        assert one.close(30)
        found = self.history(study, one.run_id(study))
        assert len(found) == len({at for _, _, at in found})
        assert len(found) >= gauges[1].asked - 1  # one may be taken after the last write
        assert {value for value, _, _ in found} == {90.0}
        assert [step for _, step, _ in found] == sorted(step for _, step, _ in found)
        assert all(100 <= step < 200 for _, step, _ in found)
        assert self.history(study, one.run_id(trial)) == []
        assert said

    def test_off(self, study: Path, gauges: list[Gauge]) -> None:
        one = Tracker(default_uri(study.parent), study.parent, study, "load", retry_s=0.01)
        assert one.close(30)
        assert gauges[0].asked == 0
        assert self.history(study, one.run_id(study)) == []

    def test_nothing_is_waited_for_at_the_end(
        self, study: Path, gauges: list[Gauge], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = Tracker(default_uri(study.parent), study.parent, study, "load", load=True, retry_s=0.01)
        wait_for(lambda: bool(one.run_id(study)) and gauges[0].asked > 0 and one._idle.is_set())
        began = time.monotonic()
        assert one.close(30)
        assert time.monotonic() - began < 5


GPU = "system/gpu_0_utilization_percentage"


def wait_for(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)
