"""One run inside a Ray worker. The worker process is kept, and with it the data and the teacher."""

from __future__ import annotations

import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from akd import folder as run_folder
from akd.config import DataConfig, Experiment
from akd.config import load as load_experiment
from akd.data import TrainData
from akd.data import load as load_data
from akd.data import split as split_data
from akd.errors import AkdError
from akd.fit import EpochRecord
from akd.scheduler import METRIC, TIME
from akd.teacher import LiveTeacher, TeacherSource
from akd.teacher.keep import load_teacher

_ended: float | None = None


@lru_cache(maxsize=1)
def _data(config: DataConfig) -> TrainData:
    return split_data(config, load_data(config))


@lru_cache(maxsize=1)
def _teacher(folder: str, device: str) -> nn.Module:
    return load_teacher(Path(folder), device)


def teacher_source(experiment: Experiment, teacher: Path | None, device: str) -> TeacherSource | None:
    """The live teacher if the experiment's method needs one."""
    needs = experiment.method.needs
    if not needs:
        return None
    if teacher is None:
        raise ValueError(f"{experiment.method.title} needs a teacher")
    return LiveTeacher(_teacher(str(teacher), device), needs)


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: train in ``config["folder"]``, report every epoch.

    A failure of the training itself (divergence, out of memory, a bug in a method) is reported as a result with
    ``failed``, not raised: Tune would try it again, and it would fail again. Only a dead process is retried.
    """
    from ray import tune

    global _ended
    began = time.time()
    idle_since = _ended
    first = True
    failed = None

    def on_epoch(record: EpochRecord) -> None:
        nonlocal first
        result: dict[str, Any] = {TIME: record.epoch, METRIC: record.metrics["val/accuracy"]}
        if first and idle_since is not None:
            result["start_cost_s"] = ready - idle_since
        first = False
        tune.report(result)

    folder = Path(config["folder"])
    ready = began
    try:
        experiment = load_experiment(folder / "experiment.yaml", {}, strict=False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        teacher = Path(config["teacher"]) if config.get("teacher") else None
        source = teacher_source(experiment, teacher, device)
        data = _data(experiment.data)
        ready = time.time()
        run_folder.train(
            folder, experiment, data, source, device=device, on_epoch=on_epoch, every_student=config["every_student"]
        )
    except (AkdError, RuntimeError, ValueError, OSError) as error:
        # torch.OutOfMemoryError is a RuntimeError.
        failed = str(error).splitlines()[0] if str(error) else type(error).__name__
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        _ended = time.time()
    if failed is not None:
        tune.report({"failed": failed})
