"""Decoded images in memory-mapped files: made once a machine, whole or not at all.

    <store>/<key>/store.json     what the folder holds, written last
    <store>/<key>/<part>.u8      uint8 [n, 3, S, S], one image after the other
    <store>/.<key>.building/     a store being made, under the lock .<key>.lock; renamed when all of it is on the disk

A builder that is killed leaves a ``.building`` folder, which nobody reads and the next builder removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from akd.errors import ExperimentError

#: Raised whenever the same pictures would be stored as other bytes.
FORMAT = 1
_CHUNK = 64


def store_dir() -> Path:
    """Where stores are kept: ``$AKD_CACHE_DIR/store``, by default ``~/.cache/akd/store``."""
    return Path(os.environ.get("AKD_CACHE_DIR") or "~/.cache/akd").expanduser().absolute() / "store"


def decode(path: Path, size: int) -> Any:
    """One picture as a uint8 array [3, size, size]: shorter side resized, centre cut out, as torchvision does it.

    Raises:
        ExperimentError: the file cannot be read as a picture.
    """
    import numpy as np
    from PIL import Image
    from torchvision.transforms.v2 import functional as transforms

    try:
        with Image.open(path) as image:
            picture = transforms.center_crop(transforms.resize(image.convert("RGB"), [size]), [size])
        return np.asarray(picture).transpose(2, 0, 1)
    except Exception as error:  # a damaged file can raise anything: OSError, SyntaxError, struct.error, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperimentError(f"{path} cannot be read as an image: {reason}", key="data.dir") from None


def _write_part(
    file: Path, paths: Sequence[Path], size: int, advance: Callable[[int], None], threads: int
) -> dict[str, Any]:
    """Decode ``paths`` into ``file``, in parallel; the entry of this part in ``store.json``."""
    each = 3 * size * size
    with open(file, "wb") as out:
        out.truncate(each * len(paths))

    def write(first: int) -> list[bytes]:
        chunk = [decode(path, size).tobytes() for path in paths[first : first + _CHUNK]]
        with open(file, "r+b") as out:
            out.seek(first * each)
            out.write(b"".join(chunk))
        return [hashlib.sha256(image).digest() for image in chunk]

    starts = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(write, first) for first in starts]
        try:
            for future in as_completed(futures):
                advance(len(future.result()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    digest = hashlib.sha256(b"".join(d for future in futures for d in future.result())).hexdigest()
    return {"images": len(paths), "digest": digest}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _build(side: Path, parts: Mapping[str, Sequence[Path]], size: int, source: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"decoding {Path(source).name}", total=sum(map(len, parts.values())))
        threads = len(os.sched_getaffinity(0))
        try:
            entries = {
                name: _write_part(side / f"{name}.u8", paths, size, lambda n: progress.advance(task, n), threads)
                for name, paths in parts.items()
            }
        except BaseException:
            # What is said of the mistake stands alone: a terminal's bar is wiped away, elsewhere none was shown yet.
            progress.live.transient, progress.console.quiet = True, not progress.console.is_interactive
            raise
    content = {"format": FORMAT, "size": size, "source": source, "parts": entries}
    (side / "store.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in [*side.iterdir(), side]:  # a renamed folder must not outrun its bytes, should the power go
        _flush(path)


def read(folder: Path) -> dict[str, Any] | None:
    """What ``store.json`` says; ``None`` if there is no store, or not the whole of it."""
    try:
        content = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        each = 3 * content["size"] ** 2
        whole = all((folder / f"{n}.u8").stat().st_size == each * p["images"] for n, p in content["parts"].items())
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError):
        return None
    return content if whole and content["format"] == FORMAT else None


def _sweep(root: Path) -> None:
    """Remove what killed builders of other stores left; a store that is being made is locked."""
    from filelock import FileLock, Timeout

    for left in root.glob(".*.building"):
        try:
            with FileLock(left.with_suffix(".lock"), timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        except Timeout:
            continue


def obtain(
    key: str, parts: Mapping[str, Sequence[Path]], size: int, source: str, unchanged: Callable[[], bool]
) -> Path:
    """The folder of the store called ``key``: found, or made now by exactly one of the processes that want it.

    Args:
        key: of everything the stored bytes depend on.
        parts: name of a part -> its picture files, in order.
        size: side of the stored squares.
        source: where the pictures come from, in words.
        unchanged: asked after the last picture was read; False means that ``key`` is no longer theirs.

    Raises:
        ExperimentError: a file that is no picture, pictures that change while they are read, no room, no permission.
    """
    from filelock import FileLock, Timeout

    root = store_dir()
    folder = root / key
    if read(folder) is not None:  # without the lock: it appears whole, and a shared folder may be read-only
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is storing the images of {source}; waiting for it", file=sys.stderr)
            lock.acquire()
        try:
            if read(folder) is not None:
                return folder
            side = root / f".{key}.building"
            for left in (side, folder):  # of a killed builder, or cut short since
                shutil.rmtree(left, ignore_errors=True)
            _sweep(root)
            need, free = 3 * size * size * sum(map(len, parts.values())), shutil.disk_usage(root).free
            if need > free:
                raise ExperimentError(
                    f"the images of {source} take {need / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB left; "
                    "name a larger folder with AKD_CACHE_DIR",
                    key="data",
                )
            side.mkdir()
            try:
                _build(side, parts, size, source)
                if not unchanged():
                    raise ExperimentError(f"{source} changed while it was read; try again", key="data.dir")
                os.replace(side, folder)
                _flush(root)
            finally:
                shutil.rmtree(side, ignore_errors=True)
            return folder
        finally:
            lock.release()
    except OSError as error:
        raise ExperimentError(
            f"the images of {source} cannot be stored in {root}: {error.strerror or error}; "
            "name another folder with AKD_CACHE_DIR",
            key="data",
        ) from None


def images(folder: Path, part: str) -> Tensor:
    """A part's images, uint8 [n, 3, S, S]: mapped, not read. Nobody may write to them."""
    import numpy as np

    content = read(folder)
    if content is None:
        raise ExperimentError(f"{folder} is no whole store of images", key="data")
    count, size = content["parts"][part]["images"], content["size"]
    array = np.memmap(folder / f"{part}.u8", np.uint8, "r", shape=(count, 3, size, size))
    with warnings.catch_warnings():
        # "The given NumPy array is not writable": as it should be. A private writable mapping would be the other
        # choice, and Linux refuses one that is larger than the memory.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
