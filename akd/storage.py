"""Storage that several nodes share, under one address that pyarrow opens: s3://, gs://, abfs://, hdfs://, file://.

    <address>/<study>/trials/00003/...     everything lies where it lies under the output folder
    <address>/teachers/<hash>/...
    <address>/cache/<key>/<pass>/...

An object is there whole or not at all. Nodes have nothing else in common: whoever trains works in a copy of the run's
folder (:class:`WorkingCopy`) and stores it epoch by epoch; whoever steers has a folder of all runs
(:class:`akd.mirror.Mirror`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from akd.errors import AkdError, ExperimentError, near, reason
from akd.logged import scrubbed

T = TypeVar("T")

#: Seconds that storage which does not answer is waited for.
PATIENCE_S = 600.0
_SCHEMES = ("s3", "gs", "abfs", "hdfs", "file")
#: Addresses as they are shown -> with the credentials that this process was given in them.
_given: dict[str, str] = {}


class StorageError(AkdError):
    """Storage does not answer. Says nothing of the run that needed it: it may go on later."""


class RefusedError(AkdError):
    """Storage answers, but not to this node: that will not pass by itself."""


def admit(address: str) -> str:
    """Keep an address in this process; gives what stands for it everywhere else, without credentials."""
    shown = scrubbed(address)
    _given[shown] = address
    return shown


def known(shown: str) -> str | None:
    """The address as it was given, for handing it to another process; ``None`` if it has no secret."""
    full = _given.get(shown, shown)
    return full if full != shown else None


def parse(address: str) -> tuple[Any, str]:
    """pyarrow's file system and the folder on it.

    Raises:
        ExperimentError: no address of a storage.
    """
    import pyarrow as pa
    from pyarrow import fs

    shown = scrubbed(address)
    scheme = address.partition("://")[0]
    if not re.match(r"\w+://", address) or scheme not in _SCHEMES:
        allowed = "must be an address like s3://BUCKET/FOLDER, or file:///FOLDER for one that all nodes mount"
        raise ExperimentError(f"{allowed}{near(scheme, _SCHEMES)}", key="storage", value=shown)
    if scheme == "s3" and "allow_delayed_open" not in address:  # one request for a small object, not three
        address += f"{'&' if '?' in address else '?'}allow_delayed_open=true"
    try:
        system, folder = fs.FileSystem.from_uri(address)
    except (pa.ArrowException, ValueError, OSError, TypeError) as error:
        why = re.sub(r"[?&]allow_delayed_open=true", "", scrubbed(reason(error)))
        encoded = "; a '/' in a secret is written %2F" if "@" in address else ""
        problem = f"is no address of a storage: {why}{encoded}"
        raise ExperimentError(problem, key="storage", value=shown) from None
    if not folder.strip("/"):
        raise ExperimentError("must name a bucket or folder, like s3://BUCKET/FOLDER", key="storage", value=shown)
    return system, folder.rstrip("/")


def check(address: str) -> None:
    """Refuse storage that does not answer or may not be read; writes nothing.

    Raises:
        ExperimentError: that, or no address of a storage.
    """
    system, folder = parse(address)
    try:
        from pyarrow import fs

        bucket = folder.partition("/")[0]
        if bucket and system.get_file_info(bucket).type == fs.FileType.NotFound:
            raise OSError(f"there is no bucket {bucket!r}")
        list(system.get_file_info(fs.FileSelector(folder, allow_not_found=True)))
    except OSError as error:
        problem = f"cannot be read: {_why(error)}"
        raise ExperimentError(problem, key="storage", value=scrubbed(address)) from None


def _why(error: BaseException) -> str:
    """pyarrow's reason, without the request that failed."""
    text = scrubbed(reason(error))
    found = re.search(r"AWS Error (.*?)(?:; Details:.*)?$", text)
    return found[1] if found else text


class Storage:
    """What lies under one address.

    Args:
        shown: from :func:`admit`, or an address without credentials.
        patience_s: how long to try.
    """

    def __init__(self, shown: str, patience_s: float = PATIENCE_S):
        self.shown, self.patience_s = shown, patience_s
        self.system, self.folder = parse(_given.get(shown, shown))

    def _tried(self, action: Callable[[], T]) -> T:
        end, pause = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if isinstance(error, PermissionError) or re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY", str(error)):
                    raise RefusedError(f"storage {self.shown}: {_why(error)}") from None
                if time.monotonic() + pause > end:
                    raise StorageError(f"storage {self.shown}: {_why(error)}") from None
                time.sleep(pause)
                pause = min(2 * pause, 30.0)

    def _place(self, key: str) -> str:
        return f"{self.folder}/{key}" if key else self.folder

    @property
    def _local(self) -> bool:
        return str(self.system.type_name) == "local"

    def tried(self) -> str | None:
        """Why this node cannot write there, read and remove; ``None`` if it can."""
        key = f".tried-{uuid.uuid4().hex}"
        try:
            self.put_bytes(b"akd", key)
            self.get_bytes(key)
            self.names("")
            self.remove_object(key)
        except (OSError, AkdError) as error:
            return reason(error)
        return None

    def put(self, path: Path, key: str) -> None:
        """Keep a file under ``key``, in place of what is there."""
        self.put_bytes(path.read_bytes(), key)

    def put_bytes(self, content: bytes, key: str) -> None:
        """Keep ``content`` under ``key``, in place of what is there."""
        place = self._place(key)

        def write() -> None:
            if not self._local:  # an object appears when its stream is closed
                with self.system.open_output_stream(place) as stream:
                    stream.write(content)
                return
            side = f"{place}.{uuid.uuid4().hex}.part"
            self.system.create_dir(os.path.dirname(place), recursive=True)
            with self.system.open_output_stream(side) as stream:
                stream.write(content)
            self.system.move(side, place)

        self._tried(write)

    def get_bytes(self, key: str) -> bytes:
        """What lies under ``key``.

        Raises:
            FileNotFoundError: nothing does.
        """

        def read() -> bytes:
            with self.system.open_input_stream(self._place(key)) as stream:
                return bytes(stream.read())

        return self._tried(read)

    def get(self, key: str, path: Path) -> bool:
        """Bring what lies under ``key`` into a file, whole or not at all; false if there is nothing."""
        try:
            content = self.get_bytes(key)
        except FileNotFoundError:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        side = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        side.write_bytes(content)
        os.replace(side, path)
        return True

    def exists(self, key: str) -> bool:
        """True if there is an object under ``key``."""
        return bool(self._tried(lambda: self.system.get_file_info(self._place(key))).is_file)

    def names(self, key: str) -> dict[str, int]:
        """Objects below ``key``: name from there -> bytes."""
        from pyarrow import fs

        place = self._place(key)
        selector = fs.FileSelector(place, recursive=True, allow_not_found=True)
        found = self._tried(lambda: list(self.system.get_file_info(selector)))
        return {f.path[len(place) :].lstrip("/"): f.size for f in found if f.is_file and not f.path.endswith(".part")}

    def remove(self, key: str) -> None:
        """Remove everything below ``key``; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._tried(lambda: self.system.delete_dir(self._place(key)))

    def remove_object(self, key: str) -> None:
        """Remove what lies under ``key``; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._tried(lambda: self.system.delete_file(self._place(key)))

    def fetch(self, key: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
        """Bring everything below ``key`` whose name is ``wanted`` into a folder; gives the names."""
        # A name that leads out of the folder is nobody's here.
        names = [name for name in self.names(key) if wanted(name) and ".." not in name.split("/")]
        _all_of(lambda name: self.get(f"{key}/{name}", folder / name), names)
        return names


def _all_of(action: Callable[[str], Any], names: Iterable[str]) -> None:
    """Do something with every name, several at a time: each waits for the network, not for this machine."""
    names = list(names)
    if len(names) < 2:
        for name in names:
            action(name)
        return
    with ThreadPoolExecutor(min(8, len(names))) as pool:
        list(pool.map(action, names))


_PREFIX = "akd-run-"


def _sweep() -> None:
    """Remove the copies of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and left.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(left, ignore_errors=True)


class WorkingCopy:
    """A run's folder on the node that trains it, for as long as it does; the storage has the truth.

    Args:
        storage: where the run is kept.
        key: of the run's folder.

    Attributes:
        folder: the copy.
    """

    def __init__(self, storage: Storage, key: str):
        self.storage, self.key = storage, key
        _sweep()
        self._top = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder = self._top / key.rpartition("/")[2]
        self._kept: dict[str, tuple[int, int]] = {}
        try:
            # Students of past epochs stay where they are: nothing is made of them here.
            storage.fetch(key, self.folder, lambda name: not name.startswith("students/"))
        except BaseException:
            self.close()
            raise
        self._checkpoints = self._local_checkpoints()
        self._kept = dict(self._files())

    def __enter__(self) -> WorkingCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._top, ignore_errors=True)

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                facts = path.stat()
                yield path.relative_to(self.folder).as_posix(), (facts.st_size, facts.st_mtime_ns)

    def _local_checkpoints(self) -> set[str]:
        return {path.name for path in (self.folder / "checkpoints").glob("[!.]*")}

    def store(self) -> None:
        """Keep what is new or changed. Checkpoints come before their manifests, and all of an epoch before its line in
        the history: a kill in between leaves an epoch that is made again, never one that is told but not kept."""
        files = dict(self._files())
        new = [name for name, facts in files.items() if self._kept.get(name) != facts]
        steps = (
            [n for n in new if "/" in n and not n.endswith("/manifest.json")],
            [n for n in new if n.endswith("/manifest.json")],
            [n for n in new if "/" not in n],
        )
        for names in steps:
            _all_of(lambda name: self.storage.put(self.folder / name, f"{self.key}/{name}"), names)
        self._kept = files
        here = self._local_checkpoints()
        for gone in self._checkpoints - here:
            self.storage.remove(f"{self.key}/checkpoints/{gone}")
        self._checkpoints = here
