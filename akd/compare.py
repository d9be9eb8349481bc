"""Methods at equal search budget: a study for each space, on the same data, teacher, student, trials, epochs and seeds.

    runs/NAME/              run.json, experiments/<label>.yaml, comparison.json, comparison.md
    runs/NAME-<label>/      the study of each space, as ``akd search`` leaves it

Every method is tuned by a search of its own; their winners meet on the test images with the same seeds. The controls
are the same work in all studies: they are trained in the first and copied into the others, where every setting that
they depend on is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from akd import checkpoint, compare_table, started, study
from akd import config as configuration
from akd import folder as run_folder
from akd.addresses import check_tracking
from akd.champion import final_seeds
from akd.config import Experiment
from akd.errors import AkdError, ExperimentError, Interrupted
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.logged import Logged, address_of, experiment_title, tracking_tag
from akd.names import check_name
from akd.prepare import study_folder
from akd.result import CONTROL_WORDS, StudyResult
from akd.summary import program, shown_path
from akd.terminal import Display
from akd.tracking import Tracker

#: Sections of an experiment that methods may not differ in.
_EQUAL = ("data", "teacher", "student", "train", "search")


def compare(
    experiments: Mapping[str, Experiment],
    name: str,
    *,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    tracking_later: bool = False,
    ray_address: str | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """Search each space, then put the winners side by side.

    Args:
        experiments: label -> resolved; the first is what the others are compared with.
        name: of the comparison; studies are called ``NAME-label``.

    The other arguments are as in :func:`akd.study.search`.

    Returns:
        What ``comparison.json`` holds, see :mod:`akd.compare_table`.

    Raises:
        ExperimentError: a mistake, or budgets that differ; nothing was started or written.
        Interrupted: asked to stop; :func:`resume` goes on.
        AkdError: a study failed; the others were done.
    """
    check_equal(experiments)
    places: dict[str, Any] = {
        "output": output,
        "tracking_uri": tracking_uri,
        "ray_address": ray_address,
        "storage": storage,
    }
    folder = study_folder(Path(output).absolute(), name, resume=False)
    uri = ""
    for label, experiment in experiments.items():
        check_name(f"{name}-{label}", "name")
        _, _, uri, _ = study.check(experiment, name=f"{name}-{label}", tracking_later=tracking_later, **places)
    try:
        for label, experiment in experiments.items():
            (folder / "experiments").mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(folder / "experiments" / f"{label}.yaml", experiment.to_yaml())
        own = Run("comparison", name, tags={**tracking_tag(uri, folder.parent), "labels": " ".join(experiments)})
        run_folder.create(folder, next(iter(experiments.values())), own)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise ExperimentError(problem, key="output", value=str(folder.parent)) from None
    return _Comparison(folder, experiments, uri, {**places, "tracking_uri": uri}).run()


def resume(
    name: str,
    *,
    output: str | Path = "runs",
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """Go on with a comparison that was interrupted: finished studies are not run again. Arguments as before."""
    check_name(name, "resume")
    folder = study_folder(Path(output).absolute(), name, resume=True)
    own = Run.read(folder)
    assert own is not None
    if own.kind != "comparison":
        verb = "search" if own.kind == "study" else "train"
        problem = f"is a {own.kind}, no comparison; go on with 'akd {verb} --resume {name}'"
        raise ExperimentError(problem, key="resume", value=name)
    labels = own.tags["labels"].split(" ")
    files = {label: folder / "experiments" / f"{label}.yaml" for label in labels}
    experiments = {label: configuration.load(path, {}, strict=False) for label, path in files.items()}
    uri = address_of(own.tags.get("tracking"), folder.parent, tracking_uri)
    check_tracking(uri, folder.parent, answers=False)
    places = {"output": output, "tracking_uri": uri, "ray_address": ray_address, "storage": storage}
    return _Comparison(folder, experiments, uri, places).run()


def check_equal(experiments: Mapping[str, Experiment]) -> None:
    """Refuse experiments that differ in more than their method and what is searched.

    Raises:
        ExperimentError: fewer than two, or the first key in which two of them differ.
    """
    if len(experiments) < 2:
        raise ExperimentError("needs two spaces at least, to compare their methods", key="compare")
    flats = {label: _settings(e) for label, e in experiments.items()}
    (first, expected), *others = flats.items()
    for label, found in others:
        searched = {*experiments[first].space, *experiments[label].space}
        for key in [*expected, *(k for k in found if k not in expected)]:
            mine, theirs = expected.get(key), found.get(key)
            if mine != theirs and key not in searched:
                raise ExperimentError(
                    f"is {mine!r} in {first}; only the method and its space may differ: give --{key} to compare, "
                    "which sets it for all",
                    key=key,
                    value=theirs,
                    where=experiments[label].origins.of(key) or label,
                )


def _settings(experiment: Experiment) -> dict[str, Any]:
    tree = experiment.to_dict()
    return dict(started.leaves({section: tree[section] for section in _EQUAL}, ""))


def searched_alone(experiments: Mapping[str, Experiment]) -> list[str]:
    """A line for each key beside the method's that some spaces search and others keep fixed."""
    keys = sorted({k for e in experiments.values() for k in e.space if not k.startswith("method")})
    found = []
    for key in keys:
        having = [label for label, e in experiments.items() if key in e.space]
        if len(having) < len(experiments):
            found.append(f"{key} is searched by {', '.join(having)} alone")
    return found


class _Comparison:
    """One session of a comparison."""

    def __init__(self, folder: Path, experiments: Mapping[str, Experiment], uri: str, places: dict[str, Any]):
        self.folder, self.experiments, self.uri, self.places = folder, dict(experiments), uri, places
        self.output, self.name = folder.parent, folder.name
        self.display = Display(0, 0, [])
        run = Run.read(folder)
        assert run is not None
        self.record = run

    def run(self) -> dict[str, Any]:
        """Study after study, then the table."""
        with self._locked(), self._tracked() as tracker:
            if self.record.state != COMPLETE:
                self.record.state, self.record.ended, self.record.reason = RUNNING, None, None
                self.record.write(self.folder)
            for line in searched_alone(self.experiments):
                self.display.say(f"note: {line}")
            failed: dict[str, str] = {}
            for label, experiment in self.experiments.items():
                try:
                    self._study(label, experiment)
                except Interrupted:
                    raise Interrupted(f"stopped; go on with: {self.resume_command()}") from None
                except ExperimentError:
                    raise
                except AkdError as error:
                    own = Run.read(self.of(label))
                    if own is None or own.state != FAILED:  # a full disk: nothing else could be written, either
                        raise AkdError(f"{label}: {error}; then: {self.resume_command()}") from None
                    failed[label] = str(error)
                    self.display.say(f"{label} failed: {error}", "red")
                tracker.later(self._nested(tracker, label))
            return self._conclude(tracker, failed)

    def of(self, label: str) -> Path:
        """The folder of a study."""
        return self.output / f"{self.name}-{label}"

    def resume_command(self) -> str:
        """What a user types to go on."""
        place = "" if self.output == Path("runs").absolute() else f" --output {shown_path(self.output)}"
        return f"{program()} compare --resume {self.name}{place}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ExperimentError("is being compared by another process", key="name", value=self.name) from None

    @contextmanager
    def _tracked(self) -> Iterator[Tracker]:
        one = next(iter(self.experiments.values()))
        title = experiment_title(one.data.name, one.teacher.name, one.student.name)
        tracker = Tracker(
            self.uri, self.output, self.folder, title, on_trouble=lambda line: self.display.say(line, "yellow")
        )
        try:
            yield tracker
        finally:
            if tracker.closed is None and not tracker.close():
                self.display.say(f"MLflow did not take everything; '{self.resume_command()}' fills it in", "yellow")

    def _study(self, label: str, experiment: Experiment) -> None:
        folder, places = self.of(label), self.places
        own = Run.read(folder)
        if own is not None and own.state == COMPLETE and StudyResult.read(folder) is not None:
            self.display.say(f"{label}: finished already ({shown_path(folder)})")
            return
        if own is None:
            ready, folder, uri, mirror = study.check(experiment, name=folder.name, tracking_later=True, **places)
            study.found(ready, folder, uri, mirror, {"comparison": self.name})
        noted = Run.read(folder)
        if noted is not None and "storage" not in noted.tags:  # else other nodes would not find what is copied here
            for lent in self._lend(label):
                self.display.say(f"{label}: {lent} as trained in {self.of(self._first).name}")
        study.resume(folder.name, **places)

    @property
    def _first(self) -> str:
        return next(iter(self.experiments))

    def _lend(self, label: str) -> list[str]:
        """Copy the first study's controls into another: what nothing but a method tells apart is trained once."""
        first, folder = self.of(self._first), self.of(label)
        mine, theirs = (configuration.load(f / "experiment.yaml", {}, strict=False) for f in (first, folder))
        if first == folder or _settings(mine) != _settings(theirs):
            return []
        stretched = any("train.epoch_factor" in e.space for e in (mine, theirs))  # finals are as long as the winner's
        wanted = [f"controls/{name}" for name in CONTROL_WORDS]
        if not stretched:
            wanted += [f"finals/{name}-seed{seed}" for name in CONTROL_WORDS for seed in final_seeds(mine)]
        found = []
        for part in wanted:
            run = Run.read(first / part)
            if run is None or run.state != COMPLETE or (folder / part / "run.json").exists():
                continue
            skipped = shutil.ignore_patterns("run.json", "mlflow.json", "checkpoints", "students")
            shutil.copytree(first / part, folder / part, ignore=skipped, dirs_exist_ok=True)
            run.tags = {**run.tags, "lent_by": first.name}
            run.write(folder / part)  # last, so that a folder with it is whole
            found.append(run.name)
        return found

    def _nested(self, tracker: Tracker, label: str) -> Callable[[], None]:
        """Puts a study's run below the comparison's, in MLflow."""

        def job() -> None:
            run_id = Logged.read(self.of(label), self.uri).run_id
            if run_id:
                tracker.client.set_tag(run_id, "mlflow.parentRunId", tracker.run_id(self.folder))

        return job

    def _conclude(self, tracker: Tracker, failed: Mapping[str, str]) -> dict[str, Any]:
        done = {label: self.of(label) for label in self.experiments if label not in failed}
        table = compare_table.gather(self.name, done, failed)
        checkpoint.write_json(self.folder / "comparison.json", table)
        checkpoint.write_text(self.folder / "comparison.md", compare_table.markdown(table))
        self.record.tags |= {"method": ", ".join(self.experiments), "mlflow.note.content": compare_table.note(table)}
        state, why = (FAILED, "; ".join(f"{k}: {v}" for k, v in failed.items())) if failed else (COMPLETE, None)
        self.record.end(self.folder, state, why, **compare_table.figures(table))
        tracker.changed(self.folder)
        self.display.panel(f"comparison {self.name}", [*compare_table.lines(table), "", *self._places_of()])
        if failed:
            raise AkdError(f"{', '.join(failed)} failed ({why}); go on with: {self.resume_command()}")
        return table

    def _places_of(self) -> list[str]:
        place = "" if self.output == Path("runs").absolute() else f" --output {shown_path(self.output)}"
        return [
            f"table     {shown_path(self.folder)}/comparison.md (and .json)",
            f"studies   {', '.join(shown_path(self.of(label)) for label in self.experiments)}",
            f"MLflow    {program()} ui {self.name}{place}",
        ]


def labels(files: Sequence[Path]) -> list[str]:
    """What studies are called by: the names of files, told apart by numbers where they are the same."""
    stems = ["".join(c if c.isalnum() or c in "._-" else "-" for c in p.stem) for p in files]
    return [s if stems.count(s) == 1 else f"{s}-{stems[:k].count(s) + 1}" for k, s in enumerate(stems)]
