"""Keeping a teacher's outputs ahead of the runs that will read them. Pure torch, like the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from akd.allocation import keep_freed_memory
from akd.config import Experiment
from akd.data.dataset import TrainData
from akd.data.loader import Pass
from akd.fit import EpochRecord, make_loader
from akd.teacher.cached import CachedTeacher
from akd.world import ALONE, World


def fill(
    experiment: Experiment,
    data: TrainData,
    source: CachedTeacher,
    passes: int,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    report: Callable[[EpochRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Have the first passes of an experiment's training kept, together with all workers of ``world``.

    Args:
        passes: how many; with ``teacher.cache.epochs`` there are no more than these.
        report: called after each pass, in place of an epoch, with the images the network was run on by all workers.

    Raises:
        OSError: nothing can be kept.
    """
    if experiment.train.threads:
        torch.set_num_threads(experiment.train.threads)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    loader, amp = make_loader(experiment, data, torch.device(device), world)
    last = min(passes, loader.repeat or passes)
    for number in range(1, last + 1):
        before = source.made
        source.fill(Pass(loader, number), amp)
        made = world.sum(torch.tensor(float(source.made - before), dtype=torch.float64, device=loader.device))
        report(EpochRecord(number, {"time/teacher_images": float(made)}, cast(Any, None), number == last))
        if world.any(stop()):
            return
