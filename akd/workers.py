"""Ray Train: runs on several workers, around the same ``fit``. Run after run goes through one group of workers.

The run's folder is the truth here as everywhere: worker 0 writes it, and a group that lost a worker starts again from
the last epoch in it. Ray Train's own checkpoints and reports are not used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from akd.ddp import Group
from akd.errors import AkdError, DivergedError, RunError
from akd.fit import EpochRecord
from akd.job import FAILURES, Job, keep_trace, reason, run_job
from akd.places import Team
from akd.reach import learn
from akd.relay import Relay
from akd.storage import StorageError
from akd.world import ALONE, World

#: Times a group of workers is started again, and times that it cannot start: often, for nodes go away at any moment. A
#: run that kills its own workers is given up by akd.starts.
_RETRIES = 50
#: Seconds for workers to finish their epoch when they are asked to stop.
_PATIENCE = 20.0


def _lost_a_peer(error: BaseException) -> bool:
    """True if a collective failed, which says that another worker is gone and nothing of this run."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error).lower() for word in ("gloo", "nccl", "connection closed by peer", "connection reset")
    )


class _Last:
    """The answer to the last news."""

    stop = False

    def asked(self) -> bool:
        return self.stop


def _work(config: dict[str, Any]) -> None:
    """What each worker does: every job in turn, as far as the relay says."""
    from ray.train.torch import get_device

    device = get_device()
    context = ray.train.get_context()
    world: World = Group.joined(device) if context.get_world_size() > 1 else ALONE
    relay = config["relay"]
    jobs = [Job(**job) for job in config["jobs"]]
    learn(jobs[0].storage)

    def tell(kind: str, number: int, **news: Any) -> bool:
        """Worker 0 tells and asks, all hear the answer."""
        stop = False
        if world.rank == 0:
            stop = ray.get(relay.tell.remote({"kind": kind, "job": number, **news}))
        return world.any(stop)

    for number, job in enumerate(jobs):
        if tell("begin", number):
            continue
        last = _Last()

        def on_epoch(record: EpochRecord, number: int = number, last: _Last = last) -> None:
            last.stop = tell("epoch", number, epoch=record.epoch, metrics=record.metrics)

        try:
            results = run_job(job, device=str(device), world=world, on_epoch=on_epoch, stop=last.asked)
        except FAILURES as error:
            if _lost_a_peer(error) or isinstance(error, StorageError):
                raise
            news = {"reason": reason(error), "trace": traceback.format_exc()}
            if not isinstance(error, DivergedError):
                # The others may be waiting for this worker: the group ends, and a new one passes this job by.
                ray.get(relay.tell.remote({"kind": "failed", "job": number, **news}))
                raise
            tell("failed", number, **news)  # all workers came to the same end
            continue
        tell("end", number, results=results)


def carry(
    jobs: Sequence[Job],
    team: Team,
    *,
    on_begin: Callable[[Job], None] = lambda job: None,
    on_epoch: Callable[[Job, int, dict[str, float]], None] = lambda job, epoch, metrics: None,
    on_end: Callable[[Job, dict[str, float]], None] = lambda job, results: None,
) -> None:
    """Carry out jobs on one group of workers, one after the other.

    Args:
        on_begin, on_epoch, on_end: called here, in order; the workers wait for them. An epoch may be told twice if a
            worker died. What they raise (Tune raises SystemExit in a trial that it stops) ends the workers in order.

    Raises:
        RunError: a job failed, with the reason; those after it were not begun.
        AkdError: the workers could not be started or kept dying.
    """
    _name_the_cluster()
    relay: Any = ray.remote(num_cpus=0, max_concurrency=1000)(Relay).remote()  # type: ignore[call-overload]
    scratch = Path(tempfile.mkdtemp(prefix="akd-train-"))
    trainer = TorchTrainer(
        _work,
        train_loop_config={"jobs": [asdict(job) for job in jobs], "relay": relay},
        scaling_config=ScalingConfig(
            num_workers=team.size,
            use_gpu=team.gpus > 0,
            resources_per_worker={"CPU": team.cpus} | ({"GPU": team.gpus} if team.gpus else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=FailureConfig(  # type: ignore[call-arg]  # typed as version 1, made as version 2
                max_failures=_RETRIES, controller_failure_limit=_RETRIES
            ),
        ),
    )
    errors: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train, name="akd-train", daemon=True)
    thread.start()
    failures: dict[int, str] = {}
    done: set[int] = set()
    try:
        news = relay.next.remote()
        while thread.is_alive():
            ready, _ = ray.wait([news], timeout=0.2)
            if not ready:
                continue
            ticket, message = ray.get(news)
            number, kind = message["job"], message["kind"]
            if kind == "failed":
                if number not in failures:
                    keep_trace(jobs[number], message["trace"])
                failures.setdefault(number, message["reason"])
            stop = bool(failures)
            if kind == "begin":
                stop = stop or number in done
                if not stop:
                    on_begin(jobs[number])
            elif kind == "epoch":
                on_epoch(jobs[number], message["epoch"], message["metrics"])
            elif kind == "end" and number not in done:
                done.add(number)
                on_end(jobs[number], message["results"])
            relay.answer.remote(ticket, stop)
            news = relay.next.remote()
    except BaseException:
        relay.close.remote()
        thread.join(_PATIENCE)
        raise
    finally:
        ray.kill(relay)
        shutil.rmtree(scratch, ignore_errors=True)
    if failures:
        raise RunError(next(iter(failures.values())))
    if errors or len(done) < len(jobs):
        raise AkdError(f"the workers ended early: {_first_line(errors)}")


def _name_the_cluster() -> None:
    """Have Ray Train's own processes ask this Ray, where others run on the machine.

    The one that gives back what a stopped group held finds no Ray, or asks another's, if it has to look for one: the
    workers' CPUs and GPUs would stay taken, and every later group would wait for them for ever.
    """
    from ray.train.v2._internal import constants

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def _first_line(errors: list[BaseException]) -> str:
    if not errors:
        return "no reason is known"
    lines = [line.strip() for line in str(errors[0]).splitlines() if line.strip()]
    return lines[-1] if lines else type(errors[0]).__name__
