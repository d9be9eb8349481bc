"""How busy the machine is that steers a study: MLflow's own system metrics, gathered without MLflow's thread.

MLflow's monitor asks and tells the server from a thread of its own, and gives up for good the first time the server
does not answer. Here its gauges are read, and :mod:`akd.tracking` writes what they say when it writes anyway.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Metric

#: Seconds between two samples.
EVERY_S = 15.0
#: Samples that wait for an MLflow that is away: beyond six hours the oldest are dropped.
_MOST = 1440
#: What is kept: shares and what may run out. MLflow's pages are slow with many metrics.
_KEPT = re.compile(
    r"cpu_utilization_percentage|system_memory_usage_percentage|disk_usage_percentage|disk_available_megabytes|"
    r"network_(receive|transmit)_megabytes|gpu_\d+_(utilization|memory_usage)_percentage"
)


class MachineLoad:
    """Samples of CPUs, memory, disk, network and GPUs, waiting to be written.

    Args:
        since: seconds since 1970 from which steps are counted: a study that goes on counts on.
        every_s: between two samples.
    """

    def __init__(self, since: float, every_s: float = EVERY_S):
        self.since, self.every_s = since, every_s
        self._gauges: list[Any] | None = None
        self._waiting: deque[tuple[float, dict[str, float]]] = deque(maxlen=_MOST)
        self._due = time.monotonic()

    def wait_s(self) -> float:
        """Seconds until the next sample."""
        return max(0.0, self._due - time.monotonic())

    def sample(self) -> bool:
        """Take a sample if it is time for one. True if one was taken."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + self.every_s
        first = self._gauges is None
        if self._gauges is None:
            self._gauges = _gauges()
        found: dict[str, float] = {}
        for gauge in self._gauges:
            with contextlib.suppress(Exception):  # a gauge that fails (a GPU that is reset) is passed over
                gauge.collect_metrics()
                found |= gauge.aggregate_metrics()
            gauge.clear_metrics()
        if first:
            found.pop("cpu_utilization_percentage", None)  # a share of the time since the last question: there is none
        kept = {k: float(v) for k, v in found.items() if _KEPT.fullmatch(k) and math.isfinite(v)}
        if kept:
            self._waiting.append((time.time(), kept))
        return bool(kept)

    def waiting(self) -> list[Metric]:
        """What is to be written, oldest first. The step is seconds since the study began.

        The time is the sample's own, so that a write that is repeated is the same row.
        """
        from mlflow.entities import Metric

        return [
            Metric(f"system/{key}", value, int(at * 1000), max(0, round(at - self.since)))
            for at, values in list(self._waiting)
            for key, value in values.items()
        ]

    def written(self) -> None:
        """All of :meth:`waiting` has been."""
        self._waiting.clear()


def _gauges() -> list[Any]:
    """MLflow's, of the resources this machine has."""
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with contextlib.suppress(Exception):  # no GPU, no driver, no permission
            found.append(kind())
    return found
