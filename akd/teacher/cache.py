"""A teacher's outputs on disk: written once by whoever needs them first, read by everybody, whole or not at all.

    <root>/<key>/key.json                            what the key stands for
    <root>/<key>/<pass>/<part>-<output>-<crc>.arrow  one output of some rows of a pass: Arrow IPC, memory-mapped
    <root>/<key>/<pass>/.<part>.lock                 held by the process that is making this part
    <root>/.lock                                     held while room is made

A pass is a folder of parts of fixed rows, so that several processes share the work. Every lock is a ``flock``, which
ends with its holder: a part whose maker was killed is nobody's, and the next one makes it. Files get their names after
their bytes are on the disk, and the name holds a checksum of all of them, which is compared before they are parsed.
A pass folder is itself locked (shared) while it is used, so that what is removed for the budget is used by nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from akd import checkpoint
from akd.errors import AkdWarning, is_full
from akd.storage import Storage

#: Raised whenever the same facts would be kept as other values.
FORMAT = 1
#: What this store calls its keys and passes: in a folder that holds other things, too, nothing else is ever removed.
_KEY, _PASS = re.compile(r"[0-9a-f]{16}"), re.compile(r"\d{6}")
#: Files whose checksum this process has compared: device, inode, size and time of the last change.
_compared: set[tuple[int, int, int, int]] = set()


class Damaged(Exception):  # noqa: N818 - an event: the file is gone and will be made again
    """A file was not what its name says, and has been removed."""


def digest(facts: Mapping[str, object]) -> str:
    """The name of a key: a hash of all that the kept values depend on."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Column:
    """One output of the rows of a part.

    Attributes:
        values: [rows, width], memory-mapped; nobody may write to them.
        shape: of one row.
        dtype: the teacher gave.
    """

    values: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype


def encode(output: str, values: Tensor, half: bool) -> bytes:
    """An Arrow file of ``values`` [rows, ...] with one column of fixed-size lists.

    Args:
        output: the column's name.
        half: keep half precision, unless a finite value would overflow it.
    """
    import pyarrow as pa

    kept = values.reshape(len(values), -1).float()
    if half:
        small = kept.half()
        # 65504 is the largest half; bfloat16 and float32 reach further.
        kept = kept if bool((small.isinf() & ~kept.isinf()).any()) else small
    width = kept.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(kept.contiguous().numpy().reshape(-1)), width)
    about = {"shape": json.dumps(list(values.shape[1:])), "dtype": str(values.dtype).removeprefix("torch.")}
    schema = pa.schema([pa.field(output, column.type)], metadata=about)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    return sink.getvalue().to_pybytes()


def decode(path: Path | bytes) -> Column:
    """The column of a file that is known to be whole, mapped; or of a file's bytes."""
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.py_buffer(path) if isinstance(path, bytes) else pa.memory_map(str(path)))
    column = reader.get_batch(0).column(0)
    about = reader.schema.metadata
    flat = column.flatten().to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # not writable: as it should be
        values = torch.from_numpy(flat).view(len(column), -1)
    return Column(values, tuple(json.loads(about[b"shape"])), getattr(torch, about[b"dtype"].decode()))


def _same(handle: int, path: Path) -> bool:
    """True if ``path`` still names the file or folder that is open."""
    try:
        found, mine = os.stat(path), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Try to hold the lock file ``path``, which exists only while somebody does, or was killed doing it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Its last holder may have removed it between our two steps: then others hold another file of that name.
        mine = _try_lock(handle) and _same(handle, path)
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; what vanishes meanwhile does not count."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += size_of(Path(entry)) if entry.is_dir() else entry.stat().st_size
    return total


class Store:
    """All keys under one folder, on a file system of this machine.

    Args:
        root: made when something is kept.
        budget: bytes that may lie there besides the passes in use.
        shared: storage of several nodes, which has everything that any of them made, under ``cache/``.
    """

    def __init__(self, root: Path, budget: int, shared: Storage | None = None):
        self.root, self.budget, self.shared = Path(root), budget, shared

    def use(self, facts: Mapping[str, object], number: int) -> PassFolder:
        """The folder of a pass, made if it is not there; it cannot be removed until it is closed."""
        key = self.root / digest(facts)
        folder = key / f"{number:06d}"
        while True:
            with contextlib.suppress(FileNotFoundError):  # room was made between the two steps
                folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH)
                    if _same(handle, folder):
                        os.utime(folder)
                        if not (key / "key.json").exists():
                            checkpoint.write_json(key / "key.json", {"format": FORMAT, **facts})
                            if self.shared is not None:
                                self.shared.put(key / "key.json", f"cache/{key.name}/key.json")
                        return PassFolder(self, folder, handle)
                except BaseException:
                    os.close(handle)
                    raise
                os.close(handle)

    def make_room(self, need: int, free: bool = False) -> None:
        """Remove whole passes that nobody uses until ``need`` more bytes keep to the budget, or none is left.

        The key that was not used for the longest time gives first. Within a key the last pass does: every run begins
        with the first, and going through more passes than there is room for, each run would else find none of them.

        Args:
            free: the disk is full: remove ``need`` bytes whatever the budget.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = [key for key in self.root.iterdir() if _KEY.fullmatch(key.name) and key.is_dir()]
            for left in [left for key in keys for left in key.glob(".gone-*")]:  # of a process that was killed here
                shutil.rmtree(left, ignore_errors=True)
            passes = {key: self._passes(key) for key in keys}
            total = sum(size for found in passes.values() for _, _, size in found)
            excess = need if free else total + need - self.budget
            for key in sorted(passes, key=lambda key: max((used for _, used, _ in passes[key]), default=0)):
                for folder, _, size in reversed(passes[key]):
                    if excess <= 0:
                        return
                    if _remove(folder):
                        excess -= size
                if passes[key] and not any(key.glob("[0-9]*")):
                    shutil.rmtree(key, ignore_errors=True)

    def _passes(self, key: Path) -> list[tuple[Path, float, int]]:
        """Folder, last use and bytes of each pass of a key, in order."""
        found = []
        for folder in sorted(p for p in key.glob("[0-9]*") if _PASS.fullmatch(p.name)):
            with contextlib.suppress(FileNotFoundError):
                found.append((folder, folder.stat().st_mtime, size_of(folder)))
        return found

    def bytes_of(self, keys: Sequence[str]) -> int:
        """What lies under some keys."""
        return sum(size_of(self.root / key) for key in keys)


def _remove(folder: Path) -> bool:
    """Remove a pass if nobody uses it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        if not (_try_lock(handle) and _same(handle, folder)):
            return False
        gone = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
        os.rename(folder, gone)  # whoever waits for our lock sees that the folder is another one now
        shutil.rmtree(gone, ignore_errors=True)
        return True
    finally:
        os.close(handle)


class PassFolder:
    """One pass under one key, in use by this process until :meth:`close`."""

    def __init__(self, store: Store, folder: Path, handle: int):
        self.store, self.folder, self._handle = store, folder, handle

    def close(self) -> None:
        """Let go of the pass; what was read stays mapped."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> PassFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def files(self) -> dict[tuple[int, str], Path]:
        """(part, output) -> file, of all that are there."""
        found: dict[tuple[int, str], Path] = {}
        for name in sorted(os.listdir(self.folder)):
            stem, _, kind = name.rpartition(".")
            parts = stem.split("-")
            if kind == "arrow" and len(parts) == 3 and parts[0].isdigit():
                found[int(parts[0]), parts[1]] = self.folder / name
        return found

    def missing(self, outputs: Sequence[str], parts: int) -> dict[int, list[str]]:
        """Part -> outputs that are not there."""
        there = self.files()
        lacking = {part: [o for o in outputs if (part, o) not in there] for part in range(parts)}
        return {part: names for part, names in lacking.items() if names}

    def fill(
        self,
        needed: Sequence[str],
        parts: int,
        compute: Callable[[int], Mapping[str, Tensor]],
        *,
        half: bool,
        need: int = 0,
    ) -> list[int]:
        """Make what is missing, together with whoever else is at it; on return every needed output is there.

        Args:
            needed: outputs.
            parts: how many there are.
            compute: part -> its outputs [rows, ...] on the CPU: the needed ones, and others that are kept with them.
            half: see :func:`encode`.
            need: about how many bytes all of it takes.

        Returns:
            The parts that were computed here.
        """
        made: list[int] = []
        pause = 0.002
        self._fetch(needed, parts, need)
        while lacking := self.missing(needed, parts):
            if not made:
                self.store.make_room(need * len(lacking) // parts)
            before = len(made)
            for part in lacking:
                with _claim(self.folder / f".{part:04d}.lock") as mine:
                    if mine and part in self.missing(needed, parts):
                        self._write(part, compute(part), half)
                        made.append(part)
                        pause = 0.002
            if len(made) == before:  # others hold what is left
                time.sleep(pause)
                pause = min(0.1, 1.5 * pause)
        return made

    @property
    def _key(self) -> str:
        """What the pass is called in the storage that nodes share."""
        return f"cache/{self.folder.parent.name}/{self.folder.name}"

    def _fetch(self, needed: Sequence[str], parts: int, need: int) -> None:
        """Bring what another node has made and this one lacks."""
        lacking = self.missing(needed, parts)
        if self.store.shared is None or not lacking:
            return
        self.store.make_room(need * len(lacking) // parts)

        def wanted(name: str) -> bool:
            found = name.split("-")
            return len(found) == 3 and found[0].isdigit() and found[1] in lacking.get(int(found[0]), ())

        self.store.shared.fetch(self._key, self.folder, wanted)

    def _write(self, part: int, outputs: Mapping[str, Tensor], half: bool) -> None:
        there = self.files()
        for output, values in outputs.items():
            if (part, output) in there:
                continue
            content = encode(output, values, half)
            side = self.folder / f".{part:04d}-{output}.tmp"
            try:
                _flushed(side, content)
            except OSError as error:
                if not is_full(error):
                    raise
                self.store.make_room(2 * len(content), free=True)
                _flushed(side, content)
            name = f"{part:04d}-{output}-{zlib.crc32(content):08x}.arrow"
            if self.store.shared is not None:
                self.store.shared.put_bytes(content, f"{self._key}/{name}")
            os.replace(side, self.folder / name)

    def read(self, output: str, parts: int) -> list[Column]:
        """An output of all parts.

        Raises:
            Damaged: a file was not what its name says; it has been removed, and the others are as they were.
            FileNotFoundError: a file is gone.
        """
        there = self.files()
        columns = []
        for part in range(parts):
            path = there.get((part, output))
            if path is None:
                raise FileNotFoundError(errno.ENOENT, "removed while it was wanted", str(self.folder))
            problem = _compare(path)
            if problem is None:
                try:
                    columns.append(decode(path))
                    continue
                except (ValueError, KeyError, TypeError, AttributeError) as error:  # ArrowInvalid is a ValueError
                    problem = str(error)
            warnings.warn(f"{path} is damaged ({problem}); it is made again", AkdWarning, stacklevel=2)
            if self.store.shared is not None:  # where it may have come from
                self.store.shared.remove_object(f"{self._key}/{path.name}")
            path.unlink(missing_ok=True)
            raise Damaged(str(path))
        return columns


def _flushed(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk; nothing is left of one that does not fit."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _compare(path: Path) -> str | None:
    """What is wrong with a file's bytes, judged by the checksum in its name; each file once in a process."""
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        mark = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if mark in _compared:
            return None
        if not facts.st_size:
            return "it is empty"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = zlib.crc32(content)
    if f"{found:08x}" != path.stem.rpartition("-")[2]:
        return "its checksum is another one"
    if len(_compared) > 100_000:
        _compared.clear()
    _compared.add(mark)
    return None
