"""What a search costs its driver as it grows: 2,000 simulated trials of 20 reports each through the real code.

    .venv/bin/python tests/benchmarks/scale.py [--trials 2000] [--epochs 20] [--scheduler none] [--server]
    .venv/bin/python tests/benchmarks/scale.py --alone 5000       # the searcher by itself: no Ray, no MLflow
    .venv/bin/python tests/benchmarks/scale.py --tracking 2000 [--server]   # MLflow by itself: no Ray, no Optuna

``akd.search`` runs as always, with Tune, Optuna's journal, folders, scheduler, display and MLflow (a sqlite file, or
``--server``: a real ``mlflow server`` beside it); trials alone are simulated (``tests/simulated.py``) and cost next to
nothing. Rows are means since the row before:

    wall ms             of a whole trial, from one end to the next
    driver, tracking    milliseconds of CPU of the driver's main thread and of its tracking thread, for a whole trial
    suggest, sampler    of a suggestion, and what of it is Optuna's sampler
    report, told        of a report, and what of it is the journal; ``study``: display and tracker; ``rule``: scheduler
    end                 of the end of a trial
    journal, folder     of a whole trial, within the columns before
    snapshot            of a whole trial: what Tune keeps for itself
    MB, log MB          this process's memory; size of optuna.log
    behind, late s      folders MLflow has not seen the news of, and for how long
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import optuna
import simulated
from optuna.storages.journal import JournalFileBackend
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import FIFOScheduler

import akd
from akd import checkpoint, running, study
from akd import folder as run_folder
from akd.logged import address_of
from akd.report import formats, verify
from akd.scheduler import StudyASHA
from akd.searcher import StudySearcher, open_study
from akd.space import parse
from akd.tracking import Tracker

MARKS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
SAMPLER = ("infer_relative_search_space", "sample_relative", "sample_independent", "before_trial", "after_trial")


class Meter:
    """CPU seconds and calls of functions of the main thread, by name; of nested ones of a name the outermost.

    CPU, because a machine's other work would show in wall-clock time; waiting for the disk is not in it.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inside: set[str] = set()
        self._undo: list[Callable[[], None]] = []

    def watch(self, owner: Any, function: str, name: str, after: Callable[..., Any] = lambda *a: None) -> None:
        """Measure ``owner.function`` as ``name``; ``after`` is called with its arguments when it is done."""
        real = getattr(owner, function)

        @functools.wraps(real)
        def measured(*args: Any, **kw: Any) -> Any:
            if threading.current_thread() is not threading.main_thread() or name in self._inside:
                return real(*args, **kw)
            self._inside.add(name)
            began = time.thread_time()
            try:
                return real(*args, **kw)
            finally:
                self.seconds[name] += time.thread_time() - began
                self.calls[name] += 1
                self._inside.discard(name)
                after(*args)

        setattr(owner, function, measured)
        self._undo.append(lambda: setattr(owner, function, real))

    def searcher(self, after_end: Callable[[], None]) -> None:
        """What a suggestion, a report and the end of a trial consist of; ``after_end`` is called after each end."""
        for method in SAMPLER:
            self.watch(optuna.samplers.TPESampler, method, "sampler")
        for method in ("append_logs", "read_logs"):
            self.watch(JournalFileBackend, method, "journal")
        for owner, function in ((run_folder, "create"), (run_folder, "history"), (checkpoint, "write_text")):
            self.watch(owner, function, "folder")
        self.watch(StudySearcher, "suggest", "suggest")
        self.watch(StudySearcher, "on_trial_result", "told")
        self.watch(StudySearcher, "on_trial_complete", "end", after=lambda *a: after_end())

    def close(self) -> None:
        """Leave everything as it was."""
        for undo in reversed(self._undo):
            undo()


def resident() -> float:
    """Megabytes this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Table:
    """Rows as the study grows."""

    columns = (
        *("trials", "s", "wall ms", "driver", "tracking", "suggest", "sampler", "report", "told", "study", "rule"),
        *("end", "journal", "folder", "snapshot", "MB", "log MB", "behind", "late s"),
    )

    def __init__(self, meter: Meter, log: Path):
        self.meter, self.log = meter, log
        self.tracker: Tracker | None = None
        self.began = time.perf_counter()
        self.last = self._now()
        print(" ".join(f"{c:>8}" for c in self.columns), file=sys.stderr, flush=True)

    def _now(self) -> tuple[float, float, float, Counter[str], Counter[str]]:
        tracking = 0.0
        if self.tracker is not None and (thread := self.tracker._thread.ident) and self.tracker._thread.is_alive():
            tracking = time.clock_gettime(time.pthread_getcpuclockid(thread))
        now, m = time.perf_counter() - self.began, self.meter
        return now, time.thread_time(), tracking, Counter(m.seconds), Counter(m.calls)

    def ended(self) -> None:
        """After the end of a trial: a row if it is time for one."""
        if self.meter.calls["end"] in MARKS:
            self.row()

    def row(self) -> None:
        """Means since the row before."""
        now = self._now()
        wall, driver, tracking = (1000 * (now[k] - self.last[k]) for k in range(3))
        seconds, calls = now[3] - self.last[3], now[4] - self.last[4]

        def of(name: str, per: str = "end") -> float:
            return 1000 * seconds[name] / max(1, calls[per])

        ends, reports = max(1, calls["end"]), max(1, calls["told"])
        dirty = dict(self.tracker._dirty) if self.tracker else {}
        late = time.monotonic() - min(dirty.values()) if dirty else 0.0
        rest = driver - 1000 * (seconds["suggest"] + seconds["end"] + seconds["snapshot"])
        figures = [
            *(self.meter.calls["end"], now[0], wall / ends, driver / ends, tracking / ends),
            *(of("suggest", "suggest"), of("sampler", "suggest"), rest / reports, of("told", "told")),
            *(of("study", "told"), of("rule", "told"), of("end"), of("journal"), of("folder"), of("snapshot")),
            *(resident(), self.log.stat().st_size / 1e6, len(dirty), max(0.0, late)),
        ]
        print(
            " ".join(f"{f:8.2f}" if isinstance(f, float) else f"{f:8d}" for f in figures), file=sys.stderr, flush=True
        )
        self.last = now


def timed(what: str, do: Callable[[], Any]) -> Any:
    """Do it and print how long it took."""
    began = time.perf_counter()
    found = do()
    print(f"{what:<48} {time.perf_counter() - began:9.2f} s", file=sys.stderr, flush=True)
    return found


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of an ``mlflow server`` of its own."""
    from akd.addresses import check_tracking

    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(akd.errors.ExperimentError):
                check_tracking(f"http://127.0.0.1:{port}", folder)
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def search(args: argparse.Namespace, output: Path) -> None:
    """The whole search, and what follows it."""
    settings = {"scheduler": args.scheduler, "concurrent": args.concurrent, "cpus_per_trial": args.cpus}
    settings |= {"log_checkpoints": args.students} | ({} if args.sampler == "tpe" else {"sampler": args.sampler})
    experiment = simulated.experiment(args.trials, args.epochs, **settings)
    folder, meter = output / "scale", Meter()
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(server(output / "server")) if args.server else None
        stack.enter_context(simulated.instead_of_training())
        stack.callback(meter.close)
        table = Table(meter, folder / "optuna.log")
        meter.searcher(after_end=table.ended)
        meter.watch(running.RunningStudy, "_epoch", "study")
        for scheduler in (StudyASHA, FIFOScheduler):
            meter.watch(scheduler, "on_trial_result", "rule")
        meter.watch(TuneController, "checkpoint", "snapshot")
        meter.watch(Tracker, "__init__", "tracker", after=lambda self, *a: setattr(table, "tracker", self))
        drained: list[float] = []
        for function in ("changed", "close"):
            meter.watch(Tracker, function, function, after=lambda *a: drained.append(time.perf_counter()))
        began = time.perf_counter()
        akd.search(experiment, name="scale", output=output, tracking_uri=uri)
        print(f"{'whole search':<48} {time.perf_counter() - began:9.2f} s", file=sys.stderr)
        print(f"{'MLflow taking the rest at the end':<48} {drained[-1] - drained[-2]:9.2f} s", file=sys.stderr)
        again(folder, experiment, uri)


def again(folder: Path, experiment: Any, uri: str | None) -> None:
    """What is done with a study of this size afterwards."""
    told = timed("opening optuna.log", lambda: open_study(folder / "optuna.log", folder.name))
    timed(
        "bringing it in line with the folders", lambda: StudySearcher(experiment, parse(experiment), told, folder, {})
    )
    page = timed("report.html", lambda: formats.write(folder))
    print(f"{'its size':<48} {page.stat().st_size / 1e6:9.2f} MB", file=sys.stderr)
    run = run_folder.Run.read(folder)
    where = address_of(run.tags.get("tracking"), folder.parent, uri)
    checks = timed("akd report --verify", lambda: verify.verify(folder, where))
    for check in checks:
        print(check.line(), file=sys.stderr)
    # As after a kill at the very end: every trial is there, and nothing is known of it.
    run.state, run.ended = run_folder.RUNNING, None
    run.write(folder)
    (folder / "result.json").unlink()
    timed(
        "akd search --resume, nothing left to run",
        lambda: study.resume(folder.name, output=folder.parent, tracking_uri=uri),
    )


def alone(args: argparse.Namespace, output: Path) -> None:
    """The searcher with nothing around it: what grows with the number of trials, without noise."""
    settings = {} if args.sampler == "tpe" else {"sampler": args.sampler}
    experiment = simulated.experiment(args.alone, args.epochs, scheduler="none", **settings)
    folder, meter = output / "alone", Meter()
    folder.mkdir(parents=True)
    told, space = open_study(folder / "optuna.log", "alone"), parse(experiment)
    searcher, table = StudySearcher(experiment, space, told, folder, {}), Table(meter, folder / "optuna.log")
    meter.searcher(after_end=table.ended)
    held: list[tuple[str, Path]] = []
    for number in range(args.alone + args.concurrent):
        if number < args.alone:
            held.append((str(number), Path(searcher.suggest(str(number))["folder"])))
        if len(held) <= args.concurrent and number < args.alone:
            continue
        trial_id, path = held.pop(0)
        run = run_folder.Run.read(path)
        for entry in simulated.write_epochs(path, run, range(1, args.epochs + 1), args.epochs):
            searcher.on_trial_result(trial_id, {"epoch": entry["epoch"], "val_accuracy": entry["val/accuracy"]})
        searcher.on_trial_complete(trial_id, {})
    meter.close()
    told = timed("opening optuna.log", lambda: open_study(folder / "optuna.log", "alone"))
    timed("bringing it in line with the folders", lambda: StudySearcher(experiment, space, told, folder, {}))


def tracking(args: argparse.Namespace, output: Path) -> None:
    """What MLflow takes: new runs, an epoch of a run, the end of a run, as a store fills. Wall-clock milliseconds."""
    experiment = simulated.experiment(args.tracking, args.epochs)
    folder = output / "tracked"
    run_folder.create(folder, experiment, run_folder.Run("study", "tracked"))
    columns = ("runs", "new", "epoch", "10 epochs", "end", "all", "runs/s", "epochs/s")
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(server(output / "server")) if args.server else f"sqlite:///{output}/mlflow.db"
        tracker = Tracker(uri, output, folder, "tracked")
        tracker._idle.wait(60)
        print(" ".join(f"{c:>9}" for c in columns), file=sys.stderr, flush=True)
        space, draw = parse(experiment), random.Random(0)
        for first in range(0, args.tracking, 100):
            made = []
            for number in range(first, first + 100):
                run = run_folder.Run("trial", f"trial {number}", number=number, parameters=space.draw({}, draw))
                path = folder / "trials" / f"{number:05d}"
                run_folder.create(path, experiment.with_values(run.parameters), run)
                made.append((path, run))
            each = [_taken(tracker, [p for p, _ in made])]
            for epochs in (range(1, 2), range(2, 12)):
                for path, run in made:
                    simulated.write_epochs(path, run, epochs, args.epochs)
                each.append(_taken(tracker, [p for p, _ in made]))
            for path, run in made:
                run.end(path, run_folder.COMPLETE)
            each.append(_taken(tracker, [p for p, _ in made]))
            if first + 100 in MARKS:
                whole = each[0] + each[2] + each[3]
                figures = (*each, whole, 1000 / whole, 1000 / each[1])
                print(f"{first + 100:9d} " + " ".join(f"{f:9.1f}" for f in figures), file=sys.stderr, flush=True)
        tracker.close()


def _taken(tracker: Tracker, folders: list[Path]) -> float:
    """Milliseconds a folder that a tracker needs for the news of these."""
    began = time.perf_counter()
    for folder in folders:
        tracker.changed(folder)
    tracker._idle.wait(600)
    return 1000 * (time.perf_counter() - began) / len(folders)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trials", type=int, default=2000)
    add("--epochs", type=int, default=20)
    add("--scheduler", choices=["none", "asha"], default="none")
    add("--sampler", choices=["tpe", "random"], default="tpe")
    add("--concurrent", type=int, default=2)
    add("--cpus", type=float, default=None, help="of a trial; less than 1 lets more run at a time")
    add("--students", choices=["best", "none"], default="best", help="what MLflow gets of them")
    add("--server", action="store_true", help="an mlflow server in the place of the sqlite file")
    add("--alone", type=int, help="so many trials of the searcher by itself")
    add("--tracking", type=int, help="so many runs of the tracker by itself")
    add("--output", help="a folder to keep; default one that is removed")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        output = Path(args.output or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        (alone if args.alone else tracking if args.tracking else search)(args, output)


if __name__ == "__main__":
    main()
