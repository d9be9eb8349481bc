"""A search from end to end: teacher, controls and trials, champion, result."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from akd import config as configuration
from akd import folder as run_folder
from akd.champion import at_length_of, final_seeds, finals, hand_over
from akd.config import Experiment
from akd.data import load as load_data
from akd.data import split as split_data
from akd.errors import AkdError, ExperimentError, Interrupted
from akd.fit import check_data
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.logged import default_uri, scrubbed
from akd.prepare import Prepared, default_name, prepare, study_folder
from akd.result import StudyResult
from akd.summary import closing_lines, make_result, program, runs, shown_path
from akd.teacher.keep import Teacher, obtain
from akd.terminal import Display, percent
from akd.tracking import Tracker


def search(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    name: str | None = None,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    display: Display | None = None,
) -> StudyResult:
    """Search for the best way to distil, train the winner, and say by how much it wins.

    Args:
        experiment: resolved, or a mapping or file to resolve.
        name: of the study; default from data, method and time.
        output: folder of all studies, teachers and the default MLflow store.
        tracking_uri: MLflow address; default ``$MLFLOW_TRACKING_URI``, else a sqlite file under ``output``.
        ray_address: default ``$RAY_ADDRESS``, else a private local Ray.
        display: where progress is shown; default the terminal.

    Raises:
        ExperimentError: a mistake in the experiment; nothing was started or written.
        Interrupted: asked to stop; :func:`resume` goes on.
        AkdError: the search could not be finished.
    """
    ready = prepare(_resolved(experiment))
    name = name or default_name(ready.experiment)
    folder = study_folder(Path(output).absolute(), name, resume=False)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder.parent)
    try:
        run_folder.create(folder, ready.experiment, Run("study", name, tags={"tracking": scrubbed(uri)}))
    except OSError as error:
        raise ExperimentError(f"cannot be written: {error.strerror}", key="output", value=str(output)) from None
    return _Study(ready, folder, uri, ray_address, display).run()


def resume(
    name: str,
    *,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    display: Display | None = None,
) -> StudyResult:
    """Go on with a study that was interrupted or killed; arguments and errors as in :func:`search`."""
    folder = study_folder(Path(output).absolute(), name, resume=True)
    experiment = configuration.load(folder / "experiment.yaml", {}, strict=False)
    run = Run.read(folder)
    assert run is not None
    uri = (
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or run.tags.get("tracking") or default_uri(folder.parent)
    )
    return _Study(prepare(experiment), folder, uri, ray_address, display).run()


def distil(experiment: Experiment | Mapping[str, Any] | str | Path, *, output: str | Path = "runs") -> Any:
    """Train one student as the experiment says, in this process; see :class:`TrialResult`."""
    full = _resolved(experiment)
    full = replace(full, train=replace(full.train, threads=full.train.threads or torch.get_num_threads()))
    data = split_data(full.data, load_data(full.data))
    check_data(full, data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = Path(output).absolute()
    folder = base / "single" / time.strftime("%Y%m%d-%H%M%S")
    teacher = obtain(full, data, base / "teachers", device=device) if full.needs_teacher else None
    from akd.trial import teacher_source

    source = teacher_source(full, teacher.folder if teacher else None, device)
    run = Run("trial", folder.name)
    run_folder.create(folder, full, run)
    result = run_folder.train(folder, full, data, source, device=device)
    run.end(folder, COMPLETE)
    return TrialResult(folder / "student", result.accuracy, result.epochs_run, result.history)


@dataclass(frozen=True)
class TrialResult:
    """One distilled student.

    Attributes:
        student: folder with ``student.safetensors`` and ``config.json``.
        accuracy: top-1 on the validation split (0..1).
        epochs_run: epochs trained.
        history: metrics of each epoch.
    """

    student: Path
    accuracy: float
    epochs_run: int
    history: list[dict[str, float]]


def _resolved(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    if isinstance(experiment, Experiment):
        return experiment
    if isinstance(experiment, Mapping):
        return configuration.resolve(experiment)
    return configuration.load(Path(experiment), {})


class _Study:
    """One session of a study: everything between the checks and the result."""

    def __init__(self, ready: Prepared, folder: Path, uri: str, ray_address: str | None, display: Display | None):
        self.ready, self.folder, self.uri, self.ray_address = ready, folder, uri, ray_address
        self.experiment = ready.experiment
        self.output, self.name = folder.parent, folder.name
        keys = [p.key for p in ready.space.searched]
        self.display = display or Display(self.experiment.train.epochs, self.experiment.search.trials, keys)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.start_costs: list[float] = []
        run = Run.read(folder)
        assert run is not None
        self.record = run

    def run(self) -> StudyResult:
        """Teacher, search, champion, result; the tracker is always closed and the study's state always kept."""
        e = self.experiment
        with self._locked():
            finished = StudyResult.read(self.folder) if self.record.state == COMPLETE else None
            if self.record.state != RUNNING and finished is None:
                self.record.state, self.record.ended, self.record.reason = RUNNING, None, None
                self.record.write(self.folder)
            before, began = float(self.record.tags.get("seconds", 0)), time.time()
            experiment_name = f"{e.data.name}: {e.teacher.name} to {e.student.name}"
            self.tracker = Tracker(
                self.uri,
                self.output,
                self.folder,
                experiment_name,
                keep=e.search.log_checkpoints,
                on_trouble=lambda line: self.display.say(line, "yellow"),
            )
            for path in sorted(self.folder.glob("*/*/run.json")):  # what a session that was killed left unlogged
                self.tracker.changed(path.parent)
            self.display.say(f"study {self.name}: {experiment_name}, {len(self.ready.data.train)} training images")
            try:
                if finished is not None:  # nothing to run; MLflow may have missed something
                    return self._conclude(finished)
                teacher = self._teacher() if self.ready.wants_teacher else None
                self._search(teacher)
                return self._finish(teacher, before, began)
            except (KeyboardInterrupt, Interrupted):
                raise Interrupted(f"stopped; go on with: {self.resume_command()}") from None
            except BaseException as error:
                self.record.end(self.folder, FAILED, str(error).splitlines()[0] if str(error) else type(error).__name__)
                self.tracker.changed(self.folder)
                raise
            finally:
                if finished is None:
                    self.record.tags["seconds"] = f"{before + time.time() - began:.1f}"
                    self.record.write(self.folder)
                self._close_tracker()

    @property
    def _where(self) -> str:
        return "" if self.output == Path("runs").absolute() else f" --output {shown_path(self.output)}"

    def resume_command(self) -> str:
        """What a user types to go on."""
        return f"{program()} search --resume {self.name}{self._where}"

    def _ui_command(self) -> str:
        address = "" if self.uri == default_uri(self.output) else f" --tracking-uri {scrubbed(self.uri)}"
        return f"{program()} ui {self.name}{self._where}{address}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ExperimentError("is being searched by another process", key="name", value=self.name) from None

    def _teacher(self) -> Teacher:
        epochs = self.experiment.teacher.train.epochs
        with contextlib.ExitStack() as stack:
            advance: list[Any] = []
            current: list[Path] = []

            def on_start(folder: Path) -> None:
                current.append(folder)
                advance.append(stack.enter_context(self.display.bar(f"teacher {self.experiment.teacher.name}", epochs)))
                self.record.tags |= {"teacher_trained": "here"}
                self.record.write(self.folder)
                self.tracker.changed(folder)

            def on_epoch(record: Any) -> None:
                advance[0](record.epoch, f"validation {percent(record.metrics['val/accuracy'])} %")
                self.tracker.changed(current[0], delay=2)

            teacher = obtain(
                self.experiment,
                self.ready.data,
                self.output / "teachers",
                device=self.device,
                on_start=on_start,
                on_epoch=on_epoch,
            )
        if teacher.found and "teacher_trained" not in self.record.tags:
            given = self.experiment.teacher.weights is not None
            self.display.say(
                f"teacher {self.experiment.teacher.name}: {'given' if given else 'found'}, "
                f"validation {percent(teacher.accuracy)} %{', images it may have seen' if given else ''}"
                f" ({shown_path(teacher.folder)})"
            )
            if given:
                self.record.tags |= {"teacher_saw_validation": "may have"}
        self.record.tags |= {"teacher_hash": teacher.hash}
        self.record.results["teacher/val_accuracy"] = teacher.accuracy
        self.record.write(self.folder)
        self.tracker.changed(teacher.folder)
        return teacher

    def _search(self, teacher: Teacher | None) -> None:
        # Ray, Optuna and Tune are imported here: a mistake in an experiment is answered before anything heavy starts.
        from akd import cluster

        private = cluster.connect(self.ray_address)
        try:
            from akd import tuning
            from akd.searcher import StudySearcher, open_study

            found = cluster.nodes()
            if len(found) > 1:
                raise ExperimentError(
                    f"has {len(found)} nodes; several nodes need storage they share, which this version does not offer",
                    key="ray-address",
                )
            resources = cluster.share(self.experiment.search, found)
            searcher = StudySearcher(
                self.experiment,
                self.ready.space,
                open_study(self.folder / "optuna.log", self.name),
                self.folder,
                self.ready.controls,
                on_change=self._changed,
            )
            self.display.say(
                f"{resources.concurrent} trial{'s' * (resources.concurrent > 1)} at a time, "
                f"{resources.cpus:g} CPU and {resources.gpus:g} GPU each"
            )
            with self.display.table():
                for path in sorted([*self.folder.glob("controls/*"), *self.folder.glob("trials/*")]):
                    self._show(path)
                stopped, self.start_costs = tuning.run(
                    self.experiment, searcher, resources, teacher.folder if teacher else None, on_epoch=self._epoch
                )
        finally:
            if private:
                cluster.disconnect()
        shutil.rmtree(self.folder / "tune", ignore_errors=True)
        if stopped:
            raise Interrupted("asked to stop")

    def _show(self, folder: Path) -> None:
        run, entries = Run.read(folder), run_folder.history(folder)
        if run is not None:
            last = entries[-1] if entries else {}
            self.display.update(run, int(last.get("epoch", 0)), last.get("val/accuracy"))

    def _changed(self, folder: Path) -> None:
        self._show(folder)
        self.tracker.changed(folder)

    def _epoch(self, folder: Path, epoch: int, accuracy: float) -> None:
        run = Run.read(folder)
        if run is not None:
            self.display.update(run, epoch, accuracy)
        # Epochs are gathered: a write costs the driver more than a small epoch costs its worker.
        self.tracker.changed(folder, delay=3)

    def _finish(self, teacher: Teacher | None, before: float, began: float) -> StudyResult:
        from akd.searcher import ranking

        ranked = ranking(self.folder)
        if not ranked:
            reasons = Counter(r.reason for r in runs(self.folder, "trials") if r.state == FAILED)
            why = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
            raise AkdError(f"no trial finished: {why or 'none was started'} (see {shown_path(self.folder)}/trials)")
        best = ranked[0][0]
        winner = self.experiment.with_values(best.parameters)
        experiments = {"champion": winner, **at_length_of(winner, self.ready.controls)}
        total = self.experiment.train.epochs * len(experiments) * len(final_seeds(winner))
        done = [0]
        with self.display.bar(f"final runs ({len(experiments)} x {len(final_seeds(winner))} seeds)", total) as advance:
            current: list[Path] = []

            def on_epoch(name: str, record: Any) -> None:
                done[0] += 1
                advance(done[0], name if done[0] < total else "")
                self.tracker.changed(current[-1], delay=3)

            def on_start(folder: Path) -> None:
                current.append(folder)
                self.tracker.changed(folder)

            tested = finals(
                self.folder,
                experiments,
                self.ready.data,
                teacher.folder if teacher else None,
                device=self.device,
                on_start=on_start,
                on_epoch=on_epoch,
                on_end=self.tracker.changed,
            )
        seed = final_seeds(winner)[0]
        handed = hand_over(self.folder, seed)
        result = make_result(
            self.folder,
            self.ready,
            teacher,
            ranked[0],
            tested,
            handed,
            seconds=before + time.time() - began,
            start_costs=self.start_costs,
        )
        result.write(self.folder)
        self._record_end(result)
        return self._conclude(result)

    def _conclude(self, result: StudyResult) -> StudyResult:
        """Bring MLflow in line with the result, keep MLflow's ids with it, and show it."""
        e = self.experiment
        seed = final_seeds(e)[0]
        champion = self.folder / "finals" / f"champion-seed{seed}"
        model = re.sub(r"[^\w-]+", "-", f"akd-{e.data.name}-{e.student.name}")
        registered = e.search.log_checkpoints != "none"
        if registered:
            self.tracker.register(champion, model)
        self.tracker.changed(self.folder)
        if self._close_tracker():
            t = self.tracker
            ids = {
                "tracking_uri": scrubbed(self.uri),
                "experiment_id": t.experiment_id,
                "run_id": t.run_id(self.folder),
                "best_trial_run_id": t.run_id(self.folder / "trials" / f"{result.best_trial['number']:05d}"),
                "champion_run_id": t.run_id(champion),
                "registered_model": f"models:/{model}@champion" if registered else None,
                "checkpoint_bytes": t.bytes_logged(),
            }
            result = replace(result, mlflow=ids)
            result.write(self.folder)
        title = f"winner: {e.method.title}, {e.student.name}"
        self.display.panel(title, closing_lines(result, self._ui_command()))
        return result

    def _record_end(self, result: StudyResult) -> None:
        figures = {
            "best/val_accuracy": result.best_trial["validation_accuracy"],
            "champion/test_accuracy": result.champion["test"]["mean"],
            **{f"gain/{name}_points": gain.mean for name, gain in result.gain.items()},
            "device_hours": result.device_hours,
        }
        self.record.tags |= {"best_trial": str(result.best_trial["number"]), "mlflow.note.content": result.note()}
        self.record.end(self.folder, COMPLETE, None, **figures)

    def _close_tracker(self) -> bool:
        if self.tracker.closed is None and not self.tracker.close():
            self.display.say(
                f"MLflow at {scrubbed(self.uri)} did not take everything; '{self.resume_command()}' fills it in",
                "yellow",
            )
        return bool(self.tracker.closed)


__all__ = ["Prepared", "TrialResult", "distil", "prepare", "resume", "search"]
