"""One Tune trial: in this process for one worker, as a Ray Train job for several. Both call the same ``fit``.

Tune's process is kept between trials, and with it the data and the teacher of a trial in process.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import fields
from typing import Any

from akd.fit import EpochRecord
from akd.job import FAILURES, Job, keep_trace, reason, run_job
from akd.packing import limit_memory
from akd.reach import learn
from akd.scheduler import COST, METRIC, TIME
from akd.storage import StorageError

_ended: float | None = None


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable: train in ``config["folder"]``, report every epoch.

    A failure of the training itself (divergence, out of memory, a bug in a method) is reported as a result with
    ``failed``, not raised: Tune would try it again, and it would fail again. Only a dead process is retried.
    """
    if config["team"] is None:
        limit_memory(config["gpus"])
    known = {f.name for f in fields(Job)}
    job = Job(**{key: value for key, value in config.items() if key in known})
    learn(job.storage)
    try:
        failed = _in_process(job) if config["team"] is None else _on_workers(job, config["team"])
    finally:
        global _ended
        _ended = time.time()
    if failed is not None:
        from ray import tune

        tune.report({"failed": failed})


def _result(epoch: int, metrics: dict[str, float]) -> dict[str, Any]:
    """What Tune is told of an epoch."""
    cost = metrics["time/epoch_s"] * metrics["time/devices"]
    return {TIME: epoch, METRIC: metrics["val/accuracy"], COST: cost}


def _in_process(job: Job) -> str | None:
    from ray import tune

    idle_since, ready = _ended, [time.time()]
    first = [True]

    def on_epoch(record: EpochRecord) -> None:
        result = _result(record.epoch, record.metrics)
        if first[0] and idle_since is not None:
            result["start_cost_s"] = ready[0] - idle_since
        first[0] = False
        tune.report(result)

    try:
        run_job(job, on_ready=lambda: ready.__setitem__(0, time.time()), on_epoch=on_epoch)
    except StorageError:  # nothing of the trial: it is tried again
        raise
    except FAILURES as error:
        keep_trace(job, traceback.format_exc())
        return reason(error)
    return None


def _on_workers(job: Job, team: Any) -> str | None:
    from ray import tune

    from akd.errors import RunError
    from akd.workers import carry

    told = [0]

    def on_epoch(_: Job, epoch: int, metrics: dict[str, float]) -> None:
        if epoch > told[0]:  # a group that was replaced repeats the epoch it starts from
            told[0] = epoch
            tune.report(_result(epoch, metrics))

    try:
        carry([job], team, on_epoch=on_epoch)
    except RunError as error:
        return str(error)
    return None
