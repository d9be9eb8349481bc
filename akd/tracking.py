"""MLflow: a parent run per study, a child run per folder, written by one background thread.

The thread brings MLflow in line with run folders: it creates what is missing, logs the epochs not yet logged, uploads
students, and closes runs that ended. Doing it twice changes nothing, so a tracker that was away is filled in later and
a search that was killed continues its own runs. Nothing that happens here can fail or delay a trial.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from akd import folder as run_folder
from akd import tracked
from akd.background import Background
from akd.errors import reason
from akd.folder import FAILED, RUNNING, Run
from akd.logged import Logged, scrubbed
from akd.machine_load import MachineLoad
from akd.registered import Registered, Registration, marked
from akd.tracked import STATUS, mark_of
from akd.tracking_store import connect, lasting
from akd.trials_view import trials_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

#: Times a registration is begun that fails for a reason that waiting does not mend.
_REFUSALS = 3
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Tracker(Background):
    """The study's line to MLflow.

    Args:
        uri: tracking address; sqlite stores are initialised under a file lock.
        output: folder of the default store, whose artifacts go to ``output/artifacts``.
        study: the study's folder.
        experiment_name: MLflow experiment that holds the parent run.
        keep: ``search.log_checkpoints``.
        load: log how busy this machine is, in the study's own run.
        fetch: called before a run's folder is read, to bring what another node wrote.
        on_trouble, retry_s: see :class:`akd.background.Background`.
    """

    def __init__(
        self,
        uri: str,
        output: Path,
        study: Path,
        experiment_name: str,
        *,
        keep: str = "best",
        load: bool = False,
        fetch: Callable[[Path, Run], None] = lambda folder, run: None,
        on_trouble: Callable[[str], None] = lambda line: None,
        retry_s: float = 1.0,
    ):
        self.uri, self.output, self.study, self.experiment_name = uri, output, study, experiment_name
        self.keep, self.fetch = keep, fetch
        self.experiment_id = ""
        self.registered: Registered | None = None
        self._load = MachineLoad(_started(study)) if load else None
        self._teachers: dict[str, str] = {}
        self._client: MlflowClient | None = None
        super().__init__(uri, on_trouble, retry_s)
        self.changed(study)

    # -- what the study asks ------------------------------------------------------------------------

    def bytes_logged(self) -> int:
        """Size of the students of this study that MLflow holds."""
        total = 0
        for path in self.study.glob("*/*/run.json"):
            for name in Logged.read(path.parent, self.uri).uploaded:
                part = path.parent / name
                total += sum(f.stat().st_size for f in part.iterdir()) if part.is_dir() else 0
        return total

    def run_id(self, folder: Path) -> str:
        """MLflow's id of a folder's run; empty while it has none."""
        return Logged.read(folder, self.uri).run_id

    # -- the thread --------------------------------------------------------------------------------

    @property
    def client(self) -> MlflowClient:
        """The MLflow client, connected and with the experiment made; used in the tracking thread only."""
        if self._client is None:
            self._client, self.experiment_id = connect(self.uri, self.output, self.experiment_name)
        return self._client

    # -- one folder --------------------------------------------------------------------------------

    def _sync(self, folder: Path) -> None:
        client = self.client
        run = Run.read(folder)
        if run is None:
            return
        self.fetch(folder, run)
        notes = Logged.read(folder, self.uri)
        if not notes.run_id:
            notes.run_id, notes.experiment_id = self._create(folder, run), self.experiment_id
            notes.write()
        self._log_inputs(folder, run, notes)
        self._log_epochs(folder, run, notes)
        self._upload(folder, run, notes)
        if folder == self.study:
            self._write_load(notes.run_id)
        if run.state == RUNNING and notes.ended:  # a study that goes on
            client.update_run(notes.run_id, status="RUNNING")
            client.set_tag(notes.run_id, "akd.status", RUNNING)
            notes.ended = ""
            notes.write()
        if run.state != RUNNING and notes.ended != run.state:
            self._end(run, notes)

    def _create(self, folder: Path, run: Run) -> str:
        """The folder's run: found by its mark if a killed process made it, else made."""
        client = self.client
        mark = mark_of(self.study, folder, run)
        found = client.search_runs([self.experiment_id], f"tags.`akd.mark` = '{mark}'", max_results=1)
        config = _config(folder)
        if found:
            return self._describe(found[0].info.run_id, folder, run, config)
        tags = tracked.tags_of(self.study, folder, run, config)
        if folder != self.study:
            tags["mlflow.parentRunId"] = Logged.read(self.study, self.uri).run_id or self._parent()
        started = int(run.started * 1000)
        made = client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=run.name)
        return self._describe(made.info.run_id, folder, run, config)

    def _describe(self, run_id: str, folder: Path, run: Run, config: Mapping[str, Any]) -> str:
        """Parameters and experiment; also of a run that was found, whose maker may have died before this."""
        self._params(run_id, tracked.params_of(config, run, self._searched))
        if run.number is not None:
            self.client.log_batch(run_id, metrics=_numbers(run, 0, int(run.started * 1000)))
        if run.kind == "study":
            names = list(tracked.first_names(self._searched).values())
            key, view = trials_view(self.study.name, names, int(run.started * 1000))
            self.client.set_experiment_tag(self.experiment_id, key, view)
        self.client.log_artifact(run_id, str(folder / "experiment.yaml"))
        return run_id

    @cached_property
    def _searched(self) -> list[str]:
        return list(_config(self.study).get("space") or {})

    def _parent(self) -> str:
        self._sync(self.study)
        return Logged.read(self.study, self.uri).run_id

    def _params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(k, v[:6000]) for k, v in params.items()]
        for i in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[i : i + 100])

    def _log_inputs(self, folder: Path, run: Run, notes: Logged) -> None:
        """Data and teacher as MLflow's inputs. A study learns later than it starts which teacher it has."""
        from mlflow.entities import LoggedModelInput

        datasets = tracked.dataset_inputs(self.study, run.kind) if "data" not in notes.inputs else []
        own = (run if folder == self.study else Run.read(self.study)) if run.kind != "teacher" else None
        teacher = own.tags.get("teacher_hash") if own is not None else None
        if teacher is not None and (teacher in notes.inputs or not tracked.learns_from_a_teacher(_config(folder))):
            teacher = None
        if not datasets and teacher is None:
            return
        models = [LoggedModelInput(self._teacher(teacher))] if teacher is not None else None
        self.client.log_inputs(notes.run_id, datasets=datasets or None, models=models)
        notes.inputs += (["data"] if datasets else []) + ([teacher] if teacher is not None else [])
        notes.write()

    def _teacher(self, name: str) -> str:
        """MLflow's id of a teacher as a model, made if it is not there: found by the hash of what it depends on.

        Its weights are artifacts of the run that trained it; this is what runs that learn from it point at.
        """
        if name in self._teachers:
            return self._teachers[name]
        folder, mark = self.output / "teachers" / name, f"teacher/{name}"
        model = marked(self.client, self.experiment_id, mark)
        if model is None:
            run = Logged.read(folder, self.uri).run_id or None
            config = _config(folder) if (folder / "experiment.yaml").is_file() else {}
            network = str(config.get("student", {}).get("name", "teacher"))
            accuracy = run_folder.accuracy(folder)
            facts = {"hash": name, "network": network, "val_accuracy": f"{accuracy:.6g}"}
            model = self.client.create_logged_model(
                self.experiment_id,
                f"teacher-{_plain(network)}-{name[:8]}",
                run,
                tags={"akd.mark": mark, "akd.kind": "teacher", "akd.hash": name},
                params=facts,
                model_type="teacher",
            )
        self.client.finalize_logged_model(model.model_id, "READY")
        self._teachers[name] = str(model.model_id)
        return self._teachers[name]

    def _log_epochs(self, folder: Path, run: Run, notes: Logged) -> None:
        from mlflow.entities import Metric

        heads = run_folder.head_history(folder)
        new_heads = [e for e in heads if int(e["head_epoch"]) > notes.head_epochs]
        new = [e for e in run_folder.history(folder) if int(e["epoch"]) > notes.epochs]
        metrics = [
            # The time is the epoch's own, so that a write repeated after a kill is the same row.
            Metric(key, value, int(entry["at"] * 1000), int(entry["epoch"]))
            for entry in new
            for key, value in tracked.metrics_of(entry).items()
        ]
        if new:
            epoch, at = int(new[-1]["epoch"]), int(new[-1]["at"] * 1000)
            metrics.append(Metric("epochs", float(epoch), at, epoch))
        # Head epochs end at step 0, so that the curves of what both stages measure run on into epoch 1.
        last = tracked.head_epochs(_config(folder)) if new_heads else 0
        metrics += [
            Metric(key, float(value), int(entry["at"] * 1000), int(entry["head_epoch"]) - last)
            for entry in new_heads
            for key, value in entry.items()
            if key.startswith(("heads/", "views/", "loss/"))
        ]
        self._metrics(notes.run_id, metrics)
        if new or new_heads:
            notes.epochs = int(new[-1]["epoch"]) if new else notes.epochs
            notes.head_epochs = int(new_heads[-1]["head_epoch"]) if new_heads else notes.head_epochs
            notes.write()

    def _metrics(self, run_id: str, metrics: list[Metric]) -> None:
        for i in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[i : i + 1000])

    def _beside_s(self) -> float | None:
        return None if self._load is None else self._load.wait_s()

    def _beside(self) -> None:
        """A sample of the machine's load into the study's run, if that is there."""
        assert self._load is not None
        self._load.sample()
        if run_id := self.run_id(self.study):
            self._write_load(run_id)

    def _write_load(self, run_id: str) -> None:
        if self._load is not None and (waiting := self._load.waiting()):
            self._metrics(run_id, waiting)
            self._load.written()

    def _upload(self, folder: Path, run: Run, notes: Logged) -> None:
        for part in self._wanted(folder, run):
            name = part.relative_to(folder).as_posix()
            if not part.exists():
                continue
            # What belongs to the study is made again when more is known: it is sent again if it changed.
            known = f"{name} {_digest(part)}" if run.kind == "study" else name
            if known in notes.uploaded:
                continue
            if part.is_dir():
                self.client.log_artifacts(notes.run_id, str(part), name)
            else:
                self.client.log_artifact(notes.run_id, str(part))
            notes.uploaded = [n for n in notes.uploaded if n.partition(" ")[0] != name] + [known]
            notes.write()

    def _wanted(self, folder: Path, run: Run) -> list[Path]:
        """What of a run's folder belongs into MLflow by now."""
        if run.kind == "study":
            # The experiment once more: with the trials that were added.
            names = ["result.json", "report.html", "plots", "warm_start.json"]
            names += ["experiment.yaml"] * ("trials_added" in run.tags)
            return [folder / name for name in (names if run.state != RUNNING else ["report.html"])]
        if run.kind == "comparison":
            return [folder / "comparison.json", folder / "comparison.md"] if run.state != RUNNING else []
        parts: list[Path] = []
        champion = self.keep == "champion" and run.kind == "final" and run.name.startswith("champion")
        if self.keep == "all":
            every = sorted((folder / "students").glob("epoch_*")) if (folder / "students").is_dir() else []
            parts += every if run.state != RUNNING else every[:-1]  # the newest may still be being written
        wanted = self.keep == "all" or (self.keep == "best" and run.kind != "confirm")
        if run.state != RUNNING and (wanted or champion):
            parts.append(folder / "student")
        if run.state == FAILED:
            parts.append(folder / "error.txt")
        return parts

    def _end(self, run: Run, notes: Logged) -> None:
        from mlflow.entities import Metric, RunTag

        client, run_id, ended = self.client, notes.run_id, int((run.ended or time.time()) * 1000)
        tags = {"akd.status": run.state, **tracked.own_tags(run)}
        tags |= {"akd.reason": run.reason} if run.reason else {}
        tags |= {"akd.rung": str(run.rung)} if run.rung is not None else {}
        at = int((run.ended or 0) * 1000)
        metrics = [Metric(key, float(value), at, 0) for key, value in run.results.items()]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, str(v)[:8000]) for k, v in tags.items()])
        client.set_terminated(run_id, STATUS[run.state], ended)
        notes.ended = run.state
        notes.write()

    # -- the registry ------------------------------------------------------------------------------

    def register(
        self, folder: Path, name: str, accuracy: float | None, done: Callable[[Registered], None] = lambda found: None
    ) -> None:
        """Make a final run's student a version of model ``name``, in the background; see :mod:`akd.registered`.

        Args:
            accuracy: of the trial it comes from, on the validation images.
            done: called with what became of it, which is kept as ``registered`` too; not if MLflow refuses it for good.
        """
        registration, refused = Registration(self.study, folder, name, accuracy), [0]

        def job() -> None:
            try:
                client, parent = self.client, self.run_id(self.study) or self._parent()
                self.registered = registration(client, self.experiment_id, self.run_id(folder), parent)
            except Exception as error:
                refused[0] += lasting(error)
                if refused[0] < _REFUSALS:
                    raise
                why = scrubbed(reason(error), self.uri)[:200]
                self.on_trouble(f"the champion is not registered as {name}: {why}")
                return
            done(self.registered)

        self.later(job)


def _started(study: Path) -> float:
    run = Run.read(study)
    return run.started if run is not None else time.time()


def _config(folder: Path) -> dict[str, Any]:
    """A run's experiment as plain values."""
    found: dict[str, Any] = yaml.load((folder / "experiment.yaml").read_text(encoding="utf-8"), Loader=_Loader)
    return found


def _numbers(run: Run, epochs: int, at: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, value, at, 0) for key, value in tracked.numbers_of(run, epochs).items()]


def _plain(name: str) -> str:
    """A name without what MLflow refuses in that of a model."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _digest(part: Path) -> str:
    """Of a file's content, or a folder's files and contents."""
    found = hashlib.sha256()
    for path in [part] if part.is_file() else sorted(p for p in part.rglob("*") if p.is_file()):
        found.update(path.relative_to(part.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]
