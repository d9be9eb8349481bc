"""Where runs are tracked, and what the tracker already has of each: ``mlflow.json`` in a run's folder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from akd import checkpoint

if TYPE_CHECKING:
    from akd.folder import Run

_FILE = "mlflow.json"
#: The end of a run that was told and is not the last: no state, so that whichever comes next is told.
_REOPENED = "REOPENED"


def default_uri(output: Path) -> str:
    """The sqlite store under an output folder; absolute, because Ray's workers change directory."""
    return f"sqlite:///{output.absolute()}/mlflow.db"


def tracking_tag(uri: str, output: Path) -> dict[str, str]:
    """What a study or run notes of its tracking address, to go on with the same; nothing of the store beside it, which
    goes where the output folder goes."""
    return {} if uri == default_uri(output) else {"tracking": scrubbed(uri)}


def address_of(kept: str | None, output: Path, given: str | None) -> str:
    """The MLflow address of a study or run that is there: given, of the environment, or where it wrote before.

    Args:
        kept: what :func:`tracking_tag` noted.
        output: the folder of all runs it lies in now, which may have been moved.
    """
    if kept and kept.startswith("sqlite:///") and not Path(kept.removeprefix("sqlite:///")).is_file():
        kept = None  # the folder of all runs was moved
    return given or os.environ.get("MLFLOW_TRACKING_URI") or kept or default_uri(output)


def experiment_title(data: str, teacher: str, student: str) -> str:
    """The MLflow experiment of all that is done with these three."""
    return f"{data}: {teacher} to {student}"


def title_of(study: Run, data: str, teacher: str, student: str) -> str:
    """:func:`experiment_title` of a study: of all students it searches, as it noted when it started."""
    return experiment_title(data, teacher, study.tags.get("students", student))


#: Before an @: a user with a password, which may hold anything but blanks (an AWS secret has '/' and '+'), unless what
#: follows the colon is a port and the @ of a path; or a token alone.
_LOGIN = re.compile(r"(?<=://)(?:([^\s/@:]*):(?!\d+(?:[/?#]|$))\S*|([^\s/@]+))@")
#: As :data:`_LOGIN`, of an address that is refused, or of a database: no @ of theirs belongs to a path.
_ANY_LOGIN = re.compile(r"(?<=://)(?!/)()()\S*@")
_DATABASE = re.compile(r"(?:postgres|mysql|mssql|mariadb|oracle|sqlite\+|redis|mongodb)[\w+]*$", re.IGNORECASE)
#: Options that are secrets, in an address or beside one.
_OPTION = re.compile(r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|sig|cred|auth)[^=&;\s]*=)[^&;\s]*", re.IGNORECASE)
_HEADER = re.compile(r"\b(Basic|Bearer)\s+[\w+/=.~-]{8,}")
#: Where what stands before the @ is a place, not a person: Azure's containers.
_PLACES = ("abfs", "abfss", "az", "adl", "wasb", "wasbs")


def scrubbed(text: str, *known: str, refused: bool = False) -> str:
    """An address, or a text with addresses in it, without credentials: fit for screens and files.

    Args:
        text: addresses of trackers, databases and storage, exceptions that quote them.
        known: addresses whose passwords are hidden wherever they stand: a library may quote one by itself, or the half
            of it that it took for a host.
        refused: the address is none that works: rather too much is hidden.
    """
    for secret in sorted({s for address in known for s in _secrets(address)}, key=len, reverse=True):
        text = text.replace(secret, "***")

    def login(found: re.Match[str]) -> str:
        scheme = re.search(r"([A-Za-z][\w+.-]*)://$", text[: found.start()])
        name = scheme[1].lower() if scheme else ""
        if name in _PLACES and found[1] != "":
            return f"{found[1] or found[2]}@"
        return found[0] if (name, found[0]) == ("gs", "anonymous@") else ""

    parts = re.split(r"((?<![\w+.-])[A-Za-z][\w+.-]*(?=://))", text)
    for i in range(1, len(parts), 2):  # scheme, and what follows it up to the next
        wide = refused or _DATABASE.match(parts[i])
        pattern = _ANY_LOGIN if wide and parts[i].lower() not in _PLACES else _LOGIN
        text = parts[i] + parts[i + 1]
        parts[i + 1] = pattern.sub(login, text, count=1)[len(parts[i]) :]
    return _HEADER.sub(r"\1 ***", _OPTION.sub(r"\1***", "".join(parts)))


def _secrets(address: str) -> list[str]:
    """The password of an address, as it is written, as it is meant, and the pieces a careless reader cuts it into."""
    login = _ANY_LOGIN.search(address)
    options = [m[0].partition("=")[2] for m in _OPTION.finditer(address)]
    words = [login[0][:-1].partition(":")[2] or login[0][:-1]] if login else []
    found = [*words, *options]
    found += [unquote(word) for word in found]
    found += [piece for word in found for piece in re.split(r"[@/:]", word)]
    return [word for word in found if len(word) > 3]


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
    inputs: list[str] = field(default_factory=list)

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
            "inputs": self.inputs,
        }
        checkpoint.write_json(self.path, every)


def reopen(folder: Path, *changed: str) -> None:
    """Have a run that ended told to every tracker once more, with the files that will be others by then."""
    try:
        every = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for notes in every.values():
        notes["ended"] = _REOPENED if notes.get("ended") else ""
        notes["uploaded"] = [name for name in notes.get("uploaded", []) if name not in changed]
    checkpoint.write_json(folder / _FILE, every)


def logged_as(folder: Path, uri: str) -> tuple[str, str]:
    """Experiment id and run id of a run folder in the store at ``uri``; empty strings if it is not there."""
    notes = Logged.read(folder, uri)
    return notes.experiment_id, notes.run_id
