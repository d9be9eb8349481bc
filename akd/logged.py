"""Where runs are tracked, and what the tracker already has of each: ``mlflow.json`` in a run's folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from akd import checkpoint

_FILE = "mlflow.json"


def default_uri(output: Path) -> str:
    """The sqlite store under an output folder; absolute, because Ray's workers change directory."""
    return f"sqlite:///{output.absolute()}/mlflow.db"


def experiment_title(data: str, teacher: str, student: str) -> str:
    """The MLflow experiment of all that is done with these three."""
    return f"{data}: {teacher} to {student}"


def scrubbed(uri: str) -> str:
    """A tracking address, or a text with addresses in it, without credentials: fit for screens and files."""
    uri = re.sub(r"(https?://)[^/\s]*@", r"\1", uri)  # a password may hold an @
    # Of a database's address a password may also hold a slash; 'sqlite:///' has no host and no password.
    return re.sub(r"(?<!http)(?<!https)://(?!/)\S*@", "://", uri)


@dataclass
class Logged:
    """What MLflow already has of a folder; kept in the folder, one entry a tracking address."""

    path: Path
    uri: str
    run_id: str = ""
    epochs: int = 0
    head_epochs: int = 0
    uploaded: list[str] = field(default_factory=list)
    ended: str = ""
    experiment_id: str = ""

    @classmethod
    def read(cls, folder: Path, uri: str) -> Logged:
        try:
            every = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            every = {}
        return cls(folder / _FILE, uri, **every.get(scrubbed(uri), {}))

    def write(self) -> None:
        try:
            every = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            every = {}
        every[scrubbed(self.uri)] = {
            "run_id": self.run_id,
            "epochs": self.epochs,
            "head_epochs": self.head_epochs,
            "uploaded": self.uploaded,
            "ended": self.ended,
            "experiment_id": self.experiment_id,
        }
        checkpoint.write_json(self.path, every)


def logged_as(folder: Path, uri: str) -> tuple[str, str]:
    """Experiment id and run id of a run folder in the store at ``uri``; empty strings if it is not there."""
    notes = Logged.read(folder, uri)
    return notes.experiment_id, notes.run_id
