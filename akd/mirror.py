"""The output folder of the process that steers, and its counterpart in the storage that nodes share.

What the steering process writes (experiments, how runs ended, the result) goes up; what workers wrote (histories,
students) comes down. Without storage the output folder is all there is, and nothing is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from akd.errors import ExperimentError
from akd.folder import COMPLETE, Run
from akd.job import Job
from akd.names import check_name
from akd.storage import Storage, admit, check

#: Written by the process that steers, in every run's folder.
_OWN = ("experiment.yaml", "run.json")


class Mirror:
    """An output folder and its counterpart.

    Args:
        shown: address of the storage, see :func:`akd.storage.admit`; ``None``: there is none.
        output: folder of all studies.
    """

    def __init__(self, shown: str | None, output: Path):
        self.output = output.absolute()
        self.storage = Storage(shown) if shown else None
        # Two threads that bring down one file could put the older content in place of the newer.
        self._lock = threading.Lock()

    @property
    def shown(self) -> str | None:
        """The storage's address without credentials."""
        return self.storage.shown if self.storage else None

    def tags(self) -> dict[str, str]:
        """What a study or run notes of it, to go on with the same."""
        return {"storage": self.shown} if self.shown else {}

    def flag(self) -> str:
        """What a command that goes on has to say of it, on whichever machine."""
        return f" --storage {shlex.quote(self.shown)}" if self.shown and "AKD_STORAGE" not in os.environ else ""

    def jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs that find their folders in the storage."""
        return [replace(job, storage=self.shown, top=str(self.output)) for job in jobs]

    def around(
        self,
        *,
        on_begin: Callable[[Job], None] = lambda job: None,
        on_end: Callable[[Job, dict[str, float]], None] = lambda job, results: None,
        **callbacks: Any,
    ) -> dict[str, Any]:
        """What is called as jobs are carried out, with what goes up before a job and comes down after it."""

        def begin(job: Job) -> None:
            on_begin(job)
            self.up(Path(job.folder))

        def end(job: Job, results: dict[str, float]) -> None:
            self.down(Path(job.folder))
            on_end(job, results)
            self.up(Path(job.folder), "run.json")

        return {"on_begin": begin, "on_end": end, **callbacks}

    def key(self, path: Path) -> str:
        """Of a file or folder below the output folder."""
        return path.absolute().relative_to(self.output).as_posix()

    def up(self, folder: Path, *names: str) -> None:
        """Keep files of a folder; by default those of a run that the steering process writes."""
        if self.storage is None:
            return
        for name in names or _OWN:
            if (folder / name).is_file():
                self.storage.put(folder / name, self.key(folder / name))

    def remove(self, folder: Path) -> None:
        """Remove a folder's counterpart."""
        if self.storage is not None:
            self.storage.remove(self.key(folder))

    def up_all(self, folder: Path) -> None:
        """Keep every file of a folder but checkpoints; the one that says how a run stands comes last."""
        names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
        names = [n for n in names if not n.startswith("checkpoints/") and not n.endswith(".lock")]
        self.up(folder, *sorted(names, key=lambda n: n == "run.json"))

    def down(self, folder: Path, *, ended: bool = True, students: bool = False) -> None:
        """Bring down what workers wrote into a run's folder.

        Args:
            ended: everything but checkpoints; else the epochs so far.
            students: of the epochs so far, too.
        """
        if self.storage is None:
            return
        key = self.key(folder)
        with self._lock:
            if ended:
                self.storage.fetch(key, folder, lambda n: n not in _OWN and not n.startswith("checkpoints/"))
                return
            if students:
                there = folder / "students"
                self.storage.fetch(f"{key}/students", there, lambda name: not (there / name).exists())
            for name in ("heads.jsonl", "history.jsonl", "warnings.txt"):
                self.storage.get(f"{key}/{name}", folder / name)

    def ended(self, folder: Path) -> bool:
        """True if the counterpart of a run's folder is there as a run that ended; without storage there is none."""
        if self.storage is None:
            return True
        try:
            found = json.loads(self.storage.get_bytes(f"{self.key(folder)}/run.json"))
        except (FileNotFoundError, ValueError):
            return False
        return bool(found.get("state") == COMPLETE)

    def adopt(self, folder: Path) -> bool:
        """Bring down a study, teacher or run that another machine steered; false if it is not in the storage."""
        if self.storage is None or folder.is_symlink() or (folder / "run.json").exists():
            return False
        names = self.storage.fetch(self.key(folder), folder, lambda n: "checkpoints/" not in n and n != "run.json")
        # Last, so that a folder with it is whole.
        return self.storage.get(f"{self.key(folder)}/run.json", folder / "run.json") and bool(names)


def open_mirror(address: str | None, output: Path) -> Mirror:
    """The counterpart of an output folder.

    Args:
        address: of the storage, with or without credentials; default ``$AKD_STORAGE``, else there is none.

    Raises:
        ExperimentError: no address of a storage, or it cannot be read.
    """
    full = address or os.environ.get("AKD_STORAGE")
    if not full:
        return Mirror(None, output)
    try:
        check(full)
    except ExperimentError as error:
        raise error.at(None if address else "AKD_STORAGE") from None
    return Mirror(admit(full), output)


def mirror_of(name: str, output: Path, address: str | None) -> Mirror:
    """The mirror of a study or run that goes on, whose folder is brought down if another machine steered it.

    Args:
        address: default ``$AKD_STORAGE``, else what the study or run was started with.

    Raises:
        ExperimentError: there is none of this name, or none can be; it was started with another storage, or this one
            cannot be read.
    """
    check_name(name, "resume")
    run = None
    with contextlib.suppress(ValueError, TypeError, OSError):  # a folder that is damaged is told of by whoever reads it
        run = Run.read(output / name)
    before = run.tags.get("storage") if run is not None else None
    mirror = open_mirror(address or (before if "AKD_STORAGE" not in os.environ else None), output)
    if run is None:
        if not mirror.adopt(output / name) and mirror.storage is not None and not (output / name).exists():
            problem = f"there is no study or run of this name in {output}, nor in {mirror.shown}"
            raise ExperimentError(problem, key="resume", value=name)
    elif mirror.shown != before:
        was = f"was started with {before}" if before else "was started without"
        raise ExperimentError(f"{was}, and goes on the same way", key="storage", value=mirror.shown)
    return mirror
