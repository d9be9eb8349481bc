"""What a student costs: parameters, FLOPs and latency, known before it trains.

* ``parameters``: trainable values of the student that is handed over; heads of a method are not in it.
* ``flops``: of one image forward, by :mod:`torch.utils.flop_counter`: matrix products and convolutions, where a
  multiply-add counts as two. Normalisation, activations and pooling are not counted.
* ``latency_1``, ``latency_64``: milliseconds of a forward pass of 1 and of 64 images; the network as
  :func:`akd.load_student` gives it (eval mode, float32), on the threads of a trial. The median of repeated passes after
  some that are not counted: other programs only ever make a pass slower, and a mean would count each of them. The
  students take turns, several times, so that a busy moment of the machine falls on all of them.

The first two are a pure function of architecture and data. A latency is measured once for each architecture of a study
and kept in its folder, as ``costs.json``: trials of the same architecture, and a search that goes on, see the same
number. Two searches measure two numbers, so that where a latency is an objective their suggestions may differ.

Latencies are measured in one place, one after the other, before anything else runs: in akd's own process if trials
run on the CPUs of its machine, else in a Ray task with the GPU (or CPUs) of a trial, so on one node of the cluster.
With GPUs of several kinds it is one kind's numbers that are compared.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from akd import checkpoint
from akd.config import Experiment
from akd.data.dataset import TrainData
from akd.errors import ExperimentError, reason
from akd.models import parameter_count, seeded_model
from akd.models.layout import channels_last
from akd.objectives import COSTS

_FILE = "costs.json"
#: Turns of each student.
_TURNS = 5
#: Of each turn: passes before the clock counts, the least and the most that it counts.
_WARM, _LEAST, _MOST = 2, 3, 31
#: Of each turn: seconds of warming up at least, and of counted passes at most (beyond the least number of passes).
_WARM_S, _TIMED_S = 0.05, 0.1

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Input:
    """What a network is made for: number of classes, channels and size of an image."""

    classes: int
    channels: int
    size: tuple[int, int]

    @classmethod
    def of(cls, data: TrainData) -> Input:
        return cls(len(data.dataset.classes), data.dataset.channels, data.dataset.size)

    def images(self, number: int) -> torch.Tensor:
        """``number`` images of which only the size matters."""
        return torch.zeros(number, self.channels, *self.size)

    def network(self, experiment: Experiment) -> nn.Module:
        """An experiment's student, in eval mode."""
        kw = {"in_channels": self.channels, "image_size": self.size, "taps": experiment.student.taps}
        return seeded_model(experiment.student.name, self.classes, experiment.train.seed, **kw).eval()


@torch.inference_mode()
def count(network: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """Parameters of a network and FLOPs of one forward pass of ``image`` [1, C, H, W].

    Returns:
        ``parameters`` and ``flops``; the latter not for a network that torch cannot look into.
    """
    found = {"parameters": float(parameter_count(network))}
    try:
        with FlopCounterMode(display=False) as counter:
            network(image)
    except Exception:  # a network of the user's own may be scripted or compiled
        return found
    return found | {"flops": float(counter.get_total_flops())}


@torch.inference_mode()
def passes(network: nn.Module, images: torch.Tensor, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of some forward passes of ``images`` [B, C, H, W], which lie on the network's device: one turn."""

    def wait() -> None:
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)

    began, warm = clock(), 0
    while warm < _WARM or clock() - began < _WARM_S:
        network(images)
        wait()
        warm += 1
    seconds: list[float] = []
    while len(seconds) < _LEAST or (len(seconds) < _MOST and sum(seconds) < _TIMED_S):
        at = clock()
        network(images)
        wait()
        seconds.append(clock() - at)
    return seconds


def counted(students: Mapping[str, Experiment], made_for: Input) -> Table:
    """Parameters and FLOPs of each architecture.

    Args:
        students: name -> an experiment with that student.
    """
    return {name: count(made_for.network(e), made_for.images(1)) for name, e in students.items()}


def clocked(
    students: Mapping[str, Experiment], made_for: Input, wanted: Iterable[str], device: str | None = None
) -> Table:
    """Latencies of each architecture in milliseconds, in this process.

    Args:
        students: see :func:`counted`; their ``train.threads`` are used.
        wanted: which.
        device: default the GPU, or the CPU where there is none.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    one = made_for.images(1).to(device)
    networks = {name: channels_last(made_for.network(e).to(device), one) for name, e in students.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for cost in sorted(wanted):
        images = made_for.images(COSTS[cost].batch).to(device)
        for _ in range(_TURNS):
            for name, experiment in students.items():
                with _threads(experiment.train.threads):
                    seconds.setdefault((name, cost), []).extend(passes(networks[name], images))
    found: Table = {name: {} for name in students}
    for (name, cost), every in seconds.items():
        found[name][cost] = 1000 * statistics.median(every)
    return found


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def merged(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> Table:
    """Both tables; a figure of ``one`` stays where both have it."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: {**other.get(name, {}), **one.get(name, {})} for name in names}


def lacking(table: Mapping[str, Mapping[str, float]], students: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Students of which one of the ``wanted`` costs is not known."""
    costs = list(wanted)
    return [name for name in students if any(cost not in table.get(name, {}) for cost in costs)]


# -- in a study's folder -------------------------------------------------------------------------------


def keep(study: Path, table: Mapping[str, Mapping[str, float]]) -> None:
    """Write what is known into a study's folder, unless it is there already; what is there is never changed."""
    before = kept(study)
    if (both := merged(before, table)) != before:
        checkpoint.write_json(study / _FILE, both)


def kept(study: Path) -> Table:
    """What a study's folder holds; nothing of a study made before there were costs.

    Raises:
        ExperimentError: the file is damaged.
    """
    path = study / _FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {str(k): float(v) for k, v in figures.items()} for name, figures in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ExperimentError(f"is damaged ({reason(error)}); remove it to measure again", key=str(path)) from None
