"""One session of a study, from what has been checked to the result: teacher, trials, champion, records, report."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from akd import architectures, card, confirm, costs, front, more, notices, warm
from akd import folder as run_folder
from akd.budget import Budget, spent
from akd.champion import at_length_of, final_seeds, finals, hand_over
from akd.config import Experiment
from akd.errors import AkdError, ExperimentError, Interrupted, is_full, many, reason
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.job import Job
from akd.logged import default_uri, scrubbed, title_of
from akd.mirror import Mirror
from akd.pairs import grid_words
from akd.places import Resources
from akd.prepare import Prepared
from akd.provenance import data_of, note_data
from akd.result import StudyResult
from akd.room import PATIENCE_S, out_of_room, skipped_if_full
from akd.session import Session
from akd.sharing import cache_folder, sharing
from akd.storage import StorageError
from akd.summary import closing_lines, closing_title, make_result, program, runs, shown_path
from akd.teacher.keep import Teacher, find
from akd.teacher.served import live_because
from akd.teaching import provide
from akd.terminal import Display
from akd.tracking import Tracker

#: Seconds between two pages made while a search runs, at least.
PAGE_S = 60.0


class RunningStudy:
    """One session of a study: everything between the checks and the result."""

    def __init__(
        self,
        ready: Prepared,
        folder: Path,
        uri: str,
        ray_address: str | None,
        mirror: Mirror,
        display: Display | None,
    ):
        self.ready, self.folder, self.uri, self.ray_address = ready, folder, uri, ray_address
        self.mirror = mirror
        self.experiment = ready.experiment
        self.output, self.name = folder.parent, folder.name
        keys = [p.key for p in ready.space.searched]
        self.display = display or Display(self.experiment.train.epochs, self.experiment.search.trials, keys)
        self.start_costs: list[float] = []
        self._page, self._page_due = threading.Lock(), time.monotonic() + PAGE_S
        self.confirming = False
        self.sharing = sharing(ready)
        self.cache = cache_folder(self.experiment, self.output, mirror.shown) if self.sharing.keep else None
        run = Run.read(folder)
        assert run is not None
        self.record = run
        self.before, self.began = float(run.tags.get("seconds", 0)), time.time()

    def run(self) -> StudyResult:
        """Teacher, search, champion, result; the tracker is always closed and the study's state always kept."""
        e = self.experiment
        with self._locked():
            finished = StudyResult.read(self.folder) if self.record.state == COMPLETE else None
            if self.record.state != RUNNING and finished is None:
                self.record.state, self.record.ended, self.record.reason = RUNNING, None, None
                self.record.write(self.folder)
            if data_of(self.folder) is None:  # a study of before there were such notes
                note_data(self.folder, self.experiment.data, self.ready.data)
            full = False
            experiment_name = title_of(self.record, e.data.name, e.teacher.name, e.student.name)
            self.tracker = Tracker(
                self.uri,
                self.output,
                self.folder,
                experiment_name,
                keep=e.search.log_checkpoints,
                load=e.search.system_metrics and finished is None,
                fetch=self._fetch,
                on_trouble=lambda line: self.display.say(line, "yellow"),
            )
            for path in sorted(self.folder.glob("*/*/run.json")):  # what a session that was killed left unlogged
                self.tracker.changed(path.parent)
            self.display.say(f"study {self.name}: {experiment_name}, {len(self.ready.data.train)} training images")
            everywhere = [*self.folder.glob("*/*"), *self.output.glob("teachers/*")]
            self.notices = notices.Reader(iter(everywhere))
            try:
                if finished is not None:  # nothing to run; MLflow may have missed something
                    self.display.say("it was finished already: nothing is trained again")
                    return self._conclude(finished)
                with Session(e.search, self.ray_address, self.mirror) as session:
                    self._price(session)
                    teacher = self._teacher(session) if self.ready.wants_teacher else None
                    resources = session.measured(self._largest(), teacher.folder if teacher else None)
                    self._search(session, resources, teacher)
                    return self._finish(session, teacher)
            except (KeyboardInterrupt, Interrupted):
                raise Interrupted(f"stopped; go on with: {self.resume_command()}") from None
            except BaseException as error:
                if is_full(error):  # the study has not failed: it goes on where there is space
                    full = True
                    raise AkdError(out_of_room(self.folder, self.resume_command(), error)) from None
                self.record.end(self.folder, FAILED, str(error).splitlines()[0] if str(error) else type(error).__name__)
                self.tracker.changed(self.folder)
                raise
            finally:
                if finished is None:
                    with skipped_if_full():  # the seconds alone are lost
                        self._keep_time()
                with contextlib.suppress(StorageError):  # what ended the search is told, and not that this failed too
                    self.mirror.up(self.folder, "run.json")
                self._close_tracker(PATIENCE_S if full else 60)

    @property
    def _seconds(self) -> float:
        """What the study has taken so far, in all sessions."""
        return self.before + time.time() - self.began

    def _keep_time(self) -> None:
        self.record.tags["seconds"] = f"{self._seconds:.1f}"
        self.record.write(self.folder)

    @property
    def _where(self) -> str:
        return "" if self.output == Path("runs").absolute() else f" --output {shown_path(self.output)}"

    def resume_command(self) -> str:
        """What a user types to go on."""
        return f"{program()} search --resume {self.name}{self._where}{self.mirror.flag()}"

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

    def _price(self, session: Session) -> None:
        """Have the latencies that are asked for measured, before anything else runs, and say what students cost."""
        if unknown := architectures.untimed(self.ready):
            self.display.say(f"measuring how long {many(len(unknown), 'student')} take{'s' * (len(unknown) == 1)}")
        self.ready = architectures.clocked(self.ready, session.clocked)
        self.sharing = sharing(self.ready)
        costs.keep(self.folder, self.ready.costs)
        self.mirror.up(self.folder, "costs.json")
        for line in architectures.words(self.ready):
            self.display.say(line)

    def _teacher(self, session: Session) -> Teacher:
        output = self.output
        before = find(self.experiment, self.ready.data, output / "teachers")
        if before is None and self.experiment.teacher.weights is None:
            self.record.tags |= {"teacher_trained": "here"}
            self.record.write(self.folder)
        teacher = provide(session, self.experiment, self.ready.data, output, self.display, self._logged)
        if self.experiment.teacher.weights is not None:
            self.record.tags |= {"teacher_saw_validation": "may have"}
        self.record.tags |= {"teacher_hash": teacher.hash}
        self.record.results["teacher/val_accuracy"] = teacher.accuracy
        self.record.write(self.folder)
        self.tracker.changed(self.folder)  # MLflow's run of the study points at its teacher
        for line in self.sharing.words():
            self.display.say(line)
        return teacher

    def _largest(self) -> list[Experiment]:
        """The experiment with the largest batch of its space, with each of its students."""
        most = [max(p.extremes()) for p in self.ready.space.searched if p.key == "train.batch_size"]
        every = architectures.students(self.ready.space, self.experiment).values()
        batch = most[0] if most else self.experiment.train.batch_size
        return [replace(e, train=replace(e.train, batch_size=batch)) for e in every]

    def _fetch(self, folder: Path, run: Run) -> None:
        """Bring down what the tracker is about to read: of a run that ended, everything is here."""
        if run.kind != "study" and run.state == RUNNING:
            self.mirror.down(folder, ended=False, students=self.experiment.search.log_checkpoints == "all")

    def _search(self, session: Session, resources: Resources, teacher: Teacher | None) -> None:
        # Optuna and Tune are imported here: a mistake in an experiment is answered before anything heavy starts.
        from akd import tuning
        from akd.searcher import StudySearcher, open_study

        first = warm.read(self.folder)
        if not (self.folder / "trials").exists():
            for line in first.lines:
                self.display.say(line)
        searcher = StudySearcher(
            self.experiment,
            self.ready.space,
            open_study(self.folder / "optuna.log", self.name, self.experiment.search.objectives),
            self.folder,
            self.ready.controls,
            on_change=self._changed,
            fetch=self.mirror.down,
            budget=self._budget(teacher),
            costs=self.ready.costs,
            first=first.first,
        )
        job = Job(
            "",
            str(teacher.folder) if teacher else None,
            every_student=self.experiment.search.log_checkpoints == "all",
            cache=str(self.cache) if self.cache else None,
            keep=tuple(sorted(self.sharing.keep)),
            session=session.token,
        )
        each = f" each, on {resources.workers} workers" if resources.workers > 1 else " each"
        self.display.say(
            f"{resources.concurrent} trial{'s' * (resources.concurrent > 1)} at a time, "
            f"{many(resources.cpus, 'CPU')} and {many(resources.gpus, 'GPU')}{each}"
        )
        if (words := grid_words(self.experiment, self.ready.space)) is not None:
            self.display.say(words)
        with self.display.table():
            for part in ("controls", "trials", "confirm"):
                for path in sorted(self.folder.glob(f"{part}/*")):
                    self._show(path)
            stopped, self.start_costs = tuning.run(
                self.experiment,
                searcher,
                resources,
                self.mirror.jobs([job])[0],
                on_epoch=self._epoch,
                on_lost=self._lost,
            )
        shutil.rmtree(self.folder / "tune", ignore_errors=True)
        if stopped:
            raise Interrupted("asked to stop")

    def _budget(self, teacher: Teacher | None) -> Budget:
        data, own = self.ready.data, teacher is not None and "teacher_trained" in self.record.tags
        return Budget(
            self.experiment,
            self.folder,
            teacher_s=spent(teacher.folder)[0] if teacher is not None and own else 0.0,
            final_share=(len(data.train) + len(data.val)) / len(data.train),
            elapsed=lambda: self._seconds,
            say=lambda line: self.display.say(line, "yellow"),
        )

    def _show(self, folder: Path) -> None:
        run, entries = Run.read(folder), run_folder.history(folder)
        if run is not None:
            last = entries[-1] if entries else {}
            self.display.update(run, int(last.get("epoch", 0)), last.get("val/accuracy"))

    def _changed(self, folder: Path) -> None:
        if folder.parent.name == "confirm" and not self.confirming:
            self.confirming = True
            n, k = self.experiment.search.confirm_seeds or 1, self.experiment.search.confirm
            self.display.say(f"confirming: the best {k} finished trials, from {many(n, 'other seed')}")
        self._show(folder)
        self._report_meanwhile()
        if self.experiment.search.time_budget:  # a kill takes no more of it than the run it met
            self._keep_time()
        self.mirror.up(folder)
        self._logged(folder)

    def _logged(self, folder: Path, delay: float = 0.0) -> None:
        """A run has news: for MLflow, and for the user if something was not as it should be."""
        for line in self.notices.new(folder):
            self.display.say(f"warning: {line}", "yellow")
        self.tracker.changed(folder, delay)

    def _epoch(self, folder: Path, epoch: int, accuracy: float) -> None:
        run = Run.read(folder)
        if run is not None:
            self.display.update(run, epoch, accuracy)
        # Epochs are gathered: a write costs the driver more than a small epoch costs its worker.
        self._logged(folder, delay=3)

    def _lost(self, folder: Path) -> None:
        with contextlib.suppress(StorageError):
            self.mirror.down(folder, ended=False)
        run, epochs = Run.read(folder), len(run_folder.history(folder))
        after = f"after epoch {epochs}" if epochs else "from its beginning"
        self.display.say(f"{run.name if run else folder.name}: its process died; it goes on {after}", "yellow")

    def _finish(self, session: Session, teacher: Teacher | None) -> StudyResult:
        from akd.searcher import ranking

        ranked = ranking(self.folder)
        if not ranked:
            reasons = Counter(r.reason for r in runs(self.folder, "trials") if r.state == FAILED)
            why = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
            raise AkdError(f"no trial finished: {why or 'none was started'} (see {shown_path(self.folder)}/trials)")
        race = confirm.race(self.folder, self.experiment, ranked)
        first = next((r for r in ranked if race.winner and r[0].number == race.winner.number), ranked[0])
        best = first[0]
        winner = self.experiment.with_values(best.parameters)
        experiments = {"champion": winner, **at_length_of(winner, self.ready.controls)}
        self._make_way(experiments, best)
        seeds, team = len(final_seeds(winner)), session.team(winner.train.batch_size)
        total = self.experiment.train.epochs * len(experiments) * seeds
        shared = f", on {team.size} workers" if team.size > 1 else ""
        done = [0]
        with self.display.bar(f"final runs ({len(experiments)} x {seeds} seeds{shared})", total) as advance:

            def on_epoch(name: str, folder: Path) -> None:
                done[0] += 1
                advance(done[0], name if done[0] < total else "")
                self._logged(folder, delay=3)

            tested = finals(
                self.folder,
                experiments,
                teacher.folder if teacher else None,
                # A champion that asks the network itself leaves nobody to share with plain KD.
                self.cache if winner.needs_teacher and live_because(winner) is None else None,
                lambda jobs, **callbacks: session.carry(jobs, team, **callbacks),
                on_start=self._logged,
                on_epoch=on_epoch,
                on_end=self._logged,
            )
        seed = final_seeds(winner)[0]
        handed = hand_over(self.folder, seed)
        result = make_result(
            self.folder,
            self.ready,
            teacher,
            first,
            tested,
            handed,
            seconds=self._seconds,
            start_costs=self.start_costs,
            mirror=self.mirror,
            confirmation=confirm.summary(race),
        )
        result.write(self.folder)
        self._card(handed)
        self.mirror.up_all(handed)
        self._record_end(result)
        return self._conclude(result)

    def _make_way(self, experiments: Mapping[str, Experiment], best: Run) -> None:
        """Keep the final runs of an earlier winner apart from those of this one."""
        moved = more.make_way(self.folder, experiments, best.name, self.mirror, self._logged)
        if any(name.startswith("champion") for name in moved):
            self.display.say(
                f"{best.name} is another winner than before: its final runs meet the test images, as the earlier "
                "winner's did",
                "yellow",
            )

    def _conclude(self, result: StudyResult) -> StudyResult:
        """Bring MLflow in line with the result, keep MLflow's ids with it, and show it."""
        e = self.experiment
        seed = final_seeds(e)[0]
        champion = self.folder / "finals" / f"champion-seed{seed}"
        model = re.sub(r"[^\w-]+", "-", f"akd-{e.data.name}-{result.student}")
        registered = e.search.log_checkpoints != "none"
        if registered:
            self.tracker.register(champion, model, result.best_trial["validation_accuracy"])
        front.tag(self.tracker, self.folder, [member["number"] for member in result.front])
        self._report()
        self.tracker.changed(self.folder)
        if self._close_tracker():
            t, found = self.tracker, self.tracker.registered
            if found is not None and found.problem:
                self.display.say(f"the champion is no model that MLflow can load: {found.problem}", "yellow")
            ids = {
                "tracking_uri": scrubbed(self.uri),
                "experiment_id": t.experiment_id,
                "run_id": t.run_id(self.folder),
                "best_trial_run_id": t.run_id(self.folder / "trials" / f"{result.best_trial['number']:05d}"),
                "champion_run_id": t.run_id(champion),
                "registered_model": f"models:/{found.model}/{found.version}" if found else None,
                "registered": found.words() if found else None,
                "checkpoint_bytes": t.bytes_logged(),
            }
            result = replace(result, mlflow=ids)
            result.write(self.folder)
        self.mirror.up(self.folder, "result.json", "report.html")
        self.display.panel(closing_title(e, result), closing_lines(result, self._ui_command()))
        return result

    def _report(self) -> None:
        """Write ``report.html`` and its figures; a search is not lost because its page cannot be made."""
        from akd.report import formats

        try:
            with self._page:
                formats.write(self.folder)
                formats.write(self.folder, form="png")
        except Exception as error:  # whatever stands in the way: a full disk, a fault in a chart
            self.display.say(f"the report could not be made: {reason(error)}", "yellow")

    def _report_meanwhile(self) -> None:
        """Have the page made as the search stands, now and then, by the tracker's thread, which then uploads it."""
        if time.monotonic() < self._page_due:
            return
        self._page_due = math.inf
        self.tracker.later(self._meanwhile)

    def _meanwhile(self) -> None:
        from akd.report import formats

        began = time.monotonic()
        with contextlib.suppress(Exception), self._page:  # of no weight: the last page says what was wrong
            formats.write(self.folder)
        # The page of thousands of trials takes seconds: never more than a fiftieth of the time.
        self._page_due = time.monotonic() + max(PAGE_S, 50 * (time.monotonic() - began))
        self.tracker.changed(self.folder)

    def _card(self, handed: Path) -> None:
        """Write the champion's model card; a search is not lost because it cannot be made."""
        try:
            card.write(handed)
        except Exception as error:  # as for the report
            self.display.say(f"the model card could not be made: {reason(error)}", "yellow")

    def _record_end(self, result: StudyResult) -> None:
        figures = {
            "best/val_accuracy": result.best_trial["validation_accuracy"],
            "champion/test_accuracy": result.champion["test"]["mean"],
            **{f"confirm/{name}": value for name, value in confirm.figures(result.confirmation).items()},
            **{f"gain/{name}_points": gain.mean for name, gain in result.gain.items()},
            "device_hours": result.device_hours,
            **{f"teacher/{name}": float(count) for name, count in result.teacher_passes.items()},
        }
        self.record.tags |= {"best_trial": str(result.best_trial["number"]), "mlflow.note.content": result.note()}
        self.record.end(self.folder, COMPLETE, None, **figures)

    def _close_tracker(self, patience_s: float = 60.0) -> bool:
        if self.tracker.closed is None and not self.tracker.close(patience_s):
            self.display.say(
                f"MLflow at {scrubbed(self.uri)} did not take everything; '{self.resume_command()}' fills it in",
                "yellow",
            )
        return bool(self.tracker.closed)
