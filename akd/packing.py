"""Several trials of one worker on one GPU: what share of it a trial needs, and that it stays within its share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from akd.config import Experiment
from akd.data import load, split
from akd.fit import fit
from akd.teacher import LiveTeacher

#: Of a GPU's memory, left to what is in nobody's books: the display, fragmentation.
RESERVE = 0.05
#: A trial may need this much more than the rehearsal: workspaces, a method that is wider than the first one.
MARGIN = 1.2
#: More trials than this gain nothing on one GPU.
MOST = 8
_STEPS = 8


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU.

    Attributes:
        trial: taken by one trial at its peak, with the process's own context.
        whole: there are.
    """

    trial: int
    whole: int


def share_of(memory: Memory, cpus: float) -> float:
    """The share of a GPU for each trial, 1 / n rounded down to Ray's fourth decimal.

    Args:
        memory: as measured.
        cpus: that go with each GPU; a trial needs one.
    """
    fit = int(memory.whole * (1 - RESERVE) / max(1.0, memory.trial * MARGIN))
    n = max(1, min(fit, int(cpus), MOST))
    return math.floor(10_000 / n) / 10_000


def limit_memory(gpus: float) -> None:
    """Hold this process to its share of the GPU's memory: a trial that outgrows it fails, not its neighbours."""
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def rehearse(experiment: Experiment, teacher: Callable[[str], nn.Module] | None) -> Memory | None:
    """What a trial takes: a few steps of the experiment here, live teacher and evaluation included.

    Args:
        teacher: gives the network on a device.

    Returns:
        ``None`` where this process has no GPU, or the GPU no room for one trial.
    """
    if not torch.cuda.is_available():
        return None
    try:
        return _rehearsed(experiment, teacher)
    except torch.OutOfMemoryError:
        return None


def _rehearsed(experiment: Experiment, teacher: Callable[[str], nn.Module] | None) -> Memory:
    data, batch = split(experiment.data, load(experiment.data)), experiment.train.batch_size
    few = replace(data, train=data.train[: batch * _STEPS], val=data.val[: 8 * batch])
    train = replace(experiment.train, epochs=1, epoch_factor=1)
    needs = experiment.method.needs
    source = LiveTeacher(teacher("cuda"), needs) if needs and teacher is not None else None
    short = replace(experiment, train=train, method=experiment.method.without_warmup())
    free, whole = torch.cuda.mem_get_info()
    context = max(0, whole - free - torch.cuda.memory_reserved())
    fit(short, few, source, device="cuda")
    return Memory(torch.cuda.max_memory_reserved() + context, whole)
