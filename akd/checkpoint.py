"""Checkpoints: written whole or not at all, checked before they are read, and never a pickle that runs code.

A checkpoint is a folder ``epoch_000012`` (``epoch_000000_head_000003`` in head warm-up) with ``weights.safetensors``
(every tensor), ``state.json`` (everything else) and ``manifest.json`` (size and SHA-256 of both). It is written beside
its place, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from akd.errors import AkdWarning, CheckpointError

_PREFIX = "epoch_"


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new text, never half of it."""
    side = path.with_name(f".{path.name}.{os.getpid()}")
    with _gone_if_it_fails(side):
        with open(side, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)


@contextlib.contextmanager
def _gone_if_it_fails(side: Path) -> Iterator[None]:
    """Remove what was written beside its place: half of it helps nobody, and a full disk has room for it alone."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(side) if side.is_dir() else side.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write knows its number alone
            error.filename = str(side)
        raise


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, atomically; tensors that share memory are copied apart."""
    side = path.with_name(f".{path.name}.{os.getpid()}")
    with _gone_if_it_fails(side):
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, side)
        except SafetensorError as error:  # which is how its writer tells of the disk
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        os.replace(side, path)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name(epoch: int, head_epoch: int = 0) -> str:
    """What the checkpoint of an epoch is called, or of a head epoch, which comes before epoch 1; sorts by age."""
    return f"{_PREFIX}{epoch:06d}" + (f"_head_{head_epoch:06d}" if head_epoch and not epoch else "")


def numbers(path: Path) -> tuple[int, int]:
    """Epoch and head epoch of a checkpoint, from its :func:`name`."""
    parts = path.name.split("_")
    return int(parts[1]), int(parts[3]) if len(parts) > 3 else 0


def save(
    folder: Path,
    epoch: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    head_epoch: int = 0,
) -> Path:
    """Write the checkpoint of an epoch under ``folder`` and drop all but the newest ``keep``.

    Args:
        folder: parent of all checkpoints of a run.
        epoch: counted from 1, 0 within head warm-up; names the checkpoint.
        tensors: flat name -> tensor.
        state: JSON values.
        keep: how many to leave; two, so that a damaged one has a predecessor.
        head_epoch: counted from 1 within head warm-up.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name(epoch, head_epoch)
    for left in folder.glob(f".{_PREFIX}*"):  # of a writer that was killed; a run has one writer
        shutil.rmtree(left, ignore_errors=True)
    side = folder / f".{final.name}.{os.getpid()}"
    with _gone_if_it_fails(side):
        side.mkdir()
        save_tensors(side / "weights.safetensors", tensors)
        (side / "state.json").write_text(json.dumps(dict(state)), encoding="utf-8")
        files = {name: _digest(side / name) for name in ("weights.safetensors", "state.json")}
        (side / "manifest.json").write_text(json.dumps({"epoch": epoch, "sha256": files}), encoding="utf-8")
        for path in (*side.iterdir(), side):
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(side, final)
    _flush(folder)
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def all_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, whole or not."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises:
        CheckpointError: a file is missing or differs from the manifest.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, digest in manifest["sha256"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is damaged: its checksum differs from the manifest")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return load_file(path / "weights.safetensors"), state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def latest(folder: Path, *, drop: bool = False) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning.

    Args:
        drop: remove the damaged ones, so that their epochs are kept again.
    """
    damaged: dict[Path, CheckpointError] = {}
    found = None
    for path in reversed(all_checkpoints(folder)):
        try:
            load(path)
        except CheckpointError as error:
            damaged[path] = error
        else:
            found = path
            break
    instead = f"{found.name}, the one before it, is used" if found else "none is whole, the run begins again"
    for path, why in damaged.items():
        warnings.warn(f"{why}; {instead}", AkdWarning, stacklevel=2)
        if drop:
            shutil.rmtree(path, ignore_errors=True)
    return found
