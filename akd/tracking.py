"""MLflow: a parent run per study, a child run per folder, written by one background thread.

The thread brings MLflow in line with run folders: it creates what is missing, logs the epochs not yet logged, uploads
students, and closes runs that ended. Doing it twice changes nothing, so a tracker that was away is filled in later and
a search that was killed continues its own runs. Nothing that happens here can fail or delay a trial.
"""

from __future__ import annotations

import getpass
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from akd import folder as run_folder
from akd.errors import is_full
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.logged import Logged, scrubbed
from akd.methods.base import title

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: How MLflow calls the states of a run.
STATUS = {RUNNING: "RUNNING", COMPLETE: "FINISHED", "PRUNED": "FINISHED", FAILED: "FAILED"}


class Tracker:
    """The study's line to MLflow.

    Args:
        uri: tracking address; sqlite stores are initialised under a file lock.
        output: folder of the default store, whose artifacts go to ``output/artifacts``.
        study: the study's folder.
        experiment_name: MLflow experiment that holds the parent run.
        keep: ``search.log_checkpoints``.
        fetch: called before a run's folder is read, to bring what another node wrote.
        on_trouble: called once each time the tracker stops answering, with one line.
        retry_s: pause before a failed write is tried again; doubles up to thirty seconds.
    """

    def __init__(
        self,
        uri: str,
        output: Path,
        study: Path,
        experiment_name: str,
        *,
        keep: str = "best",
        fetch: Callable[[Path, Run], None] = lambda folder, run: None,
        on_trouble: Callable[[str], None] = lambda line: None,
        retry_s: float = 1.0,
    ):
        self.uri, self.output, self.study, self.experiment_name = uri, output, study, experiment_name
        self.keep, self.fetch, self.on_trouble, self.retry_s = keep, fetch, on_trouble, retry_s
        self.experiment_id = ""
        self.closed: bool | None = None
        self._client: MlflowClient | None = None
        self._dirty: dict[Path, float] = {}
        self._jobs: list[Callable[[], None]] = []
        self._wake, self._idle = threading.Condition(), threading.Event()
        self._closing = self._given_up = self._away = False
        self._taken = 0
        self._thread = threading.Thread(target=self._work, name="akd-tracking", daemon=True)
        self._thread.start()
        self.changed(study)

    # -- what the study calls: never blocks, never raises ------------------------------------------

    def changed(self, folder: Path, delay: float = 0.0) -> None:
        """Say that a run's folder has news; ``delay`` gathers several epochs into one write."""
        with self._wake:
            due = time.monotonic() + delay
            self._dirty[folder] = min(due, self._dirty.get(folder, due))
            self._idle.clear()
            self._wake.notify()

    def later(self, job: Callable[[], None]) -> None:
        """Run ``job`` in the tracking thread, after what is pending; repeated until it succeeds."""
        with self._wake:
            self._jobs.append(job)
            self._idle.clear()
            self._wake.notify()

    def close(self, patience_s: float = 60.0) -> bool:
        """Write what is pending and end the thread; False if MLflow took nothing for ``patience_s`` and some is left.

        A slow one is waited for, however much a search of thousands of trials has left.
        """
        with self._wake:
            self._closing = True
            self._dirty = dict.fromkeys(self._dirty, 0.0)
            self._wake.notify()
        taken = self._taken
        while not (done := self._idle.wait(patience_s)) and self._taken != taken:
            taken = self._taken
            self.on_trouble(f"MLflow is taking what is left, {len(self._dirty)} runs to go")
        with self._wake:
            self._given_up = not done
            self._dirty.clear()
            self._jobs.clear()
            self._wake.notify()
        self._thread.join(5)
        self.closed = done
        return done

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

    def _next(self) -> Path | Callable[[], None] | None:
        with self._wake:
            while True:
                now = time.monotonic()
                due = [f for f, at in self._dirty.items() if at <= now]
                if due:
                    del self._dirty[due[0]]
                    return due[0]
                if self._jobs and not self._dirty:
                    return self._jobs.pop(0)
                if not self._dirty and not self._jobs:
                    self._idle.set()
                    if self._closing:
                        return None
                self._wake.wait(max(0.05, min(self._dirty.values()) - now) if self._dirty else None)

    def _work(self) -> None:
        pause = self.retry_s
        while (job := self._next()) is not None:
            try:
                if isinstance(job, Path):
                    self._sync(job)
                else:
                    job()
                self._away, pause = False, self.retry_s
                self._taken += 1
            except Exception as error:  # whatever MLflow or the network raises must not end the thread
                if not self._away:
                    # Scrubbed before it is cut: half an address would no longer be known as one.
                    reason = (
                        scrubbed(str(error).splitlines()[0], self.uri)[:200] if str(error) else type(error).__name__
                    )
                    reason = "the disk is full" if is_full(error) else reason
                    self.on_trouble(f"MLflow did not take a write and will be filled in later: {reason}")
                self._away = True
                with self._wake:
                    if self._given_up:
                        return
                    if isinstance(job, Path):
                        self._dirty.setdefault(job, time.monotonic() + pause)
                    else:
                        self._jobs.insert(0, job)
                time.sleep(min(pause, 1.0) if self._closing else pause)
                pause = min(2 * pause, 30.0)

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
        self._log_epochs(folder, run, notes)
        self._upload(folder, run, notes)
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
        config = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
        if found:
            return self._describe(found[0].info.run_id, folder, run, config)
        tags = {
            "akd.mark": mark,
            "akd.kind": run.kind,
            "akd.study": self.study.name,
            "akd.method": _method(config),
            "akd.status": run.state,
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "akd",
        }
        if run.number is not None:
            tags["akd.trial"] = str(run.number)
        if folder != self.study:
            tags["mlflow.parentRunId"] = Logged.read(self.study, self.uri).run_id or self._parent()
        started = int(run.started * 1000)
        made = client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=run.name)
        return self._describe(made.info.run_id, folder, run, config)

    def _describe(self, run_id: str, folder: Path, run: Run, config: Mapping[str, Any]) -> str:
        """Parameters and experiment; also of a run that was found, whose maker may have died before this."""
        self._params(run_id, _params(config, run))
        self.client.log_artifact(run_id, str(folder / "experiment.yaml"))
        return run_id

    def _parent(self) -> str:
        self._sync(self.study)
        return Logged.read(self.study, self.uri).run_id

    def _params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(k, v[:6000]) for k, v in params.items()]
        for i in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[i : i + 100])

    def _log_epochs(self, folder: Path, run: Run, notes: Logged) -> None:
        from mlflow.entities import Metric

        heads = run_folder.head_history(folder)
        new_heads = [e for e in heads if int(e["head_epoch"]) > notes.head_epochs]
        new = [e for e in run_folder.history(folder) if int(e["epoch"]) > notes.epochs]
        metrics = [
            # The time is the epoch's own, so that a write repeated after a kill is the same row.
            Metric(key, float(value), int(entry["at"] * 1000), int(entry["epoch"]))
            for entry in new
            for key, value in entry.items()
            if key not in ("epoch", "at")
        ]
        # Head epochs end at step 0, so that the curves of what both stages measure run on into epoch 1.
        last = _head_epochs(folder) if new_heads else 0
        metrics += [
            Metric(key, float(value), int(entry["at"] * 1000), int(entry["head_epoch"]) - last)
            for entry in new_heads
            for key, value in entry.items()
            if key.startswith(("heads/", "views/", "loss/"))
        ]
        for i in range(0, len(metrics), 1000):
            self.client.log_batch(notes.run_id, metrics=metrics[i : i + 1000])
        if new or new_heads:
            notes.epochs = int(new[-1]["epoch"]) if new else notes.epochs
            notes.head_epochs = int(new_heads[-1]["head_epoch"]) if new_heads else notes.head_epochs
            notes.write()

    def _upload(self, folder: Path, run: Run, notes: Logged) -> None:
        for part in self._wanted(folder, run):
            name = part.relative_to(folder).as_posix()
            if name in notes.uploaded or not part.exists():
                continue
            if part.is_dir():
                self.client.log_artifacts(notes.run_id, str(part), name)
            else:
                self.client.log_artifact(notes.run_id, str(part))
            notes.uploaded.append(name)
            notes.write()

    def _wanted(self, folder: Path, run: Run) -> list[Path]:
        """What of a run's folder belongs into MLflow by now."""
        if run.kind == "study":
            # The experiment once more: with the trials that were added.
            names = ["result.json", "report.html", "warm_start.json"]
            names += ["experiment.yaml"] * ("trials_added" in run.tags)
            return [folder / name for name in names] if run.state != RUNNING else []
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
        client, run_id = self.client, notes.run_id
        client.set_tag(run_id, "akd.status", run.state)
        if run.reason:
            client.set_tag(run_id, "akd.reason", run.reason)
        if run.rung is not None:
            client.set_tag(run_id, "akd.rung", str(run.rung))
        for tag, text in run.tags.items():
            if tag not in ("tracking", "storage", "seconds"):
                client.set_tag(run_id, tag if tag.startswith("mlflow.") else f"akd.{tag}", text)
        for key, value in run.results.items():
            client.log_metric(run_id, key, value, timestamp=int((run.ended or 0) * 1000))
        client.set_terminated(run_id, STATUS[run.state], int((run.ended or time.time()) * 1000))
        notes.ended = run.state
        notes.write()

    # -- the registry ------------------------------------------------------------------------------

    def register(self, folder: Path, name: str, done: Callable[[str], None] = lambda version: None) -> None:
        """Register a final run's student as a version of model ``name`` with alias ``champion``, in the background."""

        def job() -> None:
            from mlflow.exceptions import MlflowException

            client, run_id = self.client, Logged.read(folder, self.uri).run_id
            try:
                client.create_registered_model(name, description="Champions of akd studies: safetensors and config.")
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = [v for v in client.search_model_versions(f"name='{name}'") if v.run_id == run_id]
            if known:
                version = known[0].version
            else:
                source = f"{client.get_run(run_id).info.artifact_uri}/student"
                version = client.create_model_version(name, source, run_id, tags={"akd.study": self.study.name}).version
            client.set_registered_model_alias(name, "champion", version)
            done(str(version))

        self.later(job)


def mark_of(study: Path, folder: Path, run: Run) -> str:
    """What tells a folder's run from all others in MLflow, its tag ``akd.mark``; the same after a kill."""
    place = f"teacher/{folder.name}" if run.kind == "teacher" else f"{study.name}/{folder.name}"
    return f"{place}@{int(run.started * 1000)}"


def connect(uri: str, output: Path, experiment_name: str) -> tuple[MlflowClient, str]:
    """A client of the store at ``uri`` and the id of an experiment there; both are made if they are missing.

    Args:
        output: folder of the default store; its artifacts go to ``output/artifacts``.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".mlflow.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _make_store(uri)
        client = client_of(uri)
        found = client.get_experiment_by_name(experiment_name)
        if found is None:
            # A server places artifacts itself; the default store needs an absolute folder.
            root = (output / "artifacts").absolute().as_uri() if uri.startswith("sqlite") else None
            try:
                # Without the kind, MLflow's pages open on the tools for language models.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                return client, client.create_experiment(experiment_name, root, tags)
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(experiment_name)
        if found is None:
            raise MlflowException(f"experiment {experiment_name!r} can be neither made nor found")
        return client, str(found.experiment_id)


def client_of(uri: str) -> MlflowClient:
    """A client of the store at ``uri`` that says little and does not wait for long."""
    # One failed request must come back soon: the tracking thread has its own patience.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Of a server MLflow prints the address of each run that ends: through the table of trials, and with its password.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    _quiet()
    return MlflowClient(uri)


def _quiet() -> None:
    """MLflow's own words, once it is imported: what fails raises, and is told in one line by whoever asked."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A database's errors would come with their stack and every value of the statement.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _make_store(uri: str) -> None:
    """Make a sqlite store that is not there: beside its place, then renamed.

    MLflow builds its tables in many steps, and a store cut off in between can never be opened again.
    """
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    _quiet()
    side = path.with_name(f".{path.name}.{os.getpid()}")
    side.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{side}").search_experiments(max_results=1)
    os.replace(side, path)


def _method(config: Mapping[str, Any]) -> str:
    """The method in words, as :attr:`akd.methods.MethodConfig.title`."""
    method = config["method"]
    views, extra, augment = method.get("views"), method.get("extra") or {}, method.get("augment")
    return title(
        method["host"]["name"],
        views["name"] if views else None,
        extra,
        normalise=method.get("normalise", False),
        augment=augment["name"] if augment else None,
    )


def _head_epochs(folder: Path) -> int:
    """How many head epochs a run has from start to end."""
    config = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
    return int((config["method"].get("views") or {}).get("head_warmup_epochs", 0))


def _params(config: Mapping[str, Any], run: Run) -> dict[str, str]:
    """A run's parameters as MLflow shows them: the searched values and what the run is made of."""
    params = {
        "data": config["data"]["name"],
        "teacher": config["teacher"]["name"],
        "student": config["student"]["name"],
        **{f"train.{k}": config["train"][k] for k in ("epochs", "batch_size", "lr", "seed", "plan_seed")},
        **({"train.epoch_factor": factor} if (factor := config["train"].get("epoch_factor", 1)) != 1 else {}),
        **{f"method.host.{k}": v for k, v in config["method"]["host"].items()},
        **{f"method.views.{k}": v for k, v in (config["method"].get("views") or {}).items()},
        **{f"method.augment.{k}": v for k, v in (config["method"].get("augment") or {}).items()},
        **{
            f"method.extra.{name}.{k}": v
            for name, settings in (config["method"].get("extra") or {}).items()
            for k, v in settings.items()
        },
        "method.normalise": config["method"].get("normalise", False),
        **run.parameters,
    }
    if run.kind == "study":
        params |= {f"search.{k}": v for k, v in config["search"].items() if v is not None}
        if "trials_added" in run.tags:  # MLflow takes no other value than the first; a tag has the present one
            del params["search.trials"]
    return {k: str(v) for k, v in params.items()}
