"""The Ray Tune run of a study: searcher, scheduler and trials, and a Ctrl-C that leaves everything in order."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig

from akd import folder as run_folder
from akd.apart import Apart, by_objectives
from akd.cluster import HEAD
from akd.config import Experiment
from akd.errors import DiskFull, is_full
from akd.folder import Run
from akd.job import Job
from akd.places import Resources
from akd.scheduler import METRIC, TIME, make_scheduler
from akd.searcher import StudySearcher
from akd.trial import run_trial


class _Events(Callback):
    """Tells the study of every finished epoch, and of every process that died."""

    def __init__(
        self,
        on_epoch: Callable[[Path, int, float], None],
        on_lost: Callable[[Path], None],
        start_costs: list[float],
    ):
        self.on_epoch, self.on_lost, self.start_costs = on_epoch, on_lost, start_costs

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into its snapshots, which akd never reads: nothing goes in."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if METRIC in result:
            self.on_epoch(Path(trial.config["folder"]), int(result[TIME]), float(result[METRIC]))
        if "start_cost_s" in result:
            self.start_costs.append(float(result["start_cost_s"]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_lost(Path(trial.config["folder"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = Path(trial.config["folder"])
        run = Run.read(folder)
        if run is not None and run.state == run_folder.RUNNING:  # the searcher hands it out again
            self.on_lost(folder)


@contextmanager
def _graceful(close: Callable[[], None]) -> Iterator[threading.Event]:
    """Within the block the first SIGINT, SIGTERM or SIGHUP ends Tune in order; a second one ends the program."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        watched.remove(signal.SIGHUP)
    before = {s: signal.getsignal(s) for s in (*watched, signal.SIGUSR1)}

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        close()
        # Tune ends at SIGUSR1 as it would at SIGINT, and keeps its handler while it runs.
        signal.raise_signal(signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    for number in watched:
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run(
    experiment: Experiment,
    searcher: StudySearcher,
    resources: Resources,
    job: Job,
    *,
    on_epoch: Callable[[Path, int, float], None],
    on_lost: Callable[[Path], None] = lambda folder: None,
    trainable: Callable[[dict[str, Any]], None] = run_trial,
) -> tuple[bool, list[float]]:
    """Run controls and trials until the searcher has no more.

    Args:
        searcher: what to run.
        resources: of a trial, and how many at once.
        job: what trials have in common: everything but a folder.
        on_epoch: called with (folder, epoch, validation accuracy).
        on_lost: called with the folder of a trial whose process died and that goes on in another.
        trainable: what Tune runs; a simulated one writes the same folders and trains nothing.

    Returns:
        Whether the user asked to stop, and the seconds each warm worker took from one trial to the next.

    Raises:
        DiskFull: of a trial, of the study's own records, or of Tune's; ended in order, runs that have not ended go on.
    """
    scheduler = by_objectives(experiment, partial(make_scheduler, experiment), searcher.budget)
    for path in sorted((searcher.folder / "trials").glob("*/run.json")):
        past = Run.read(path.parent)
        if past is not None and past.state != run_folder.RUNNING:
            own = scheduler.of(past) if isinstance(scheduler, Apart) else scheduler
            own.remember(path.parent.name, run_folder.history(path.parent))
    start_costs: list[float] = []
    # Stack traces of snapshots that could not be written, which akd never reads, and of processes that died.
    for name in ("experiment_state", "tune_controller"):
        logging.getLogger(f"ray.tune.execution.{name}").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        # The process that only steers a trial's workers takes no CPU: it could starve them.
        tune.with_resources(
            trainable, {HEAD: 0.001} if resources.team else {"cpu": resources.cpus, "gpu": resources.gpus}
        ),
        param_space={
            "team": resources.team,
            "gpus": resources.gpus,
            **{key: value for key, value in asdict(job).items() if key != "folder"},
        },
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(searcher.folder),
            callbacks=[_Events(on_epoch, on_lost, start_costs)],
            # As often as nodes go away; a run that kills its own process is given up by akd.starts.
            failure_config=FailureConfig(max_failures=-1),
            verbose=0,
        ),
    )
    with _graceful(lambda: setattr(searcher, "closed", True)) as asked:
        if threading.current_thread() is threading.main_thread():
            searcher.on_full = lambda: signal.raise_signal(signal.SIGUSR1)
        try:
            tuner.fit()
        except Exception as error:  # Tune keeps records of its own beside the study, and may be the first to notice
            if searcher.full is None and not is_full(error):
                raise
            searcher.full = searcher.full or str(error).strip().splitlines()[-1]
    if searcher.full is not None:
        raise DiskFull(searcher.full)
    return asked.is_set(), start_costs
