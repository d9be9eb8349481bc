"""What a study's numbers depend on beside its experiment: versions, the commit of the code, the data, the command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd import __version__, checkpoint
from akd.logged import scrubbed

if TYPE_CHECKING:
    from akd.data import TrainData
    from akd.data.dataset import DataConfig

_LIBRARIES = ("torch", "ray", "optuna", "mlflow", "numpy")
_DATA = "data.json"
#: Seconds git has to answer: a folder on a slow network must not hold a search up.
_PATIENCE_S = 5.0


def versions() -> str:
    """``akd 0.1.0, Python 3.11.2, torch 2.15.0, ...``."""
    found = [f"akd {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # put on the path without being installed
            continue
    return ", ".join(found)


def cpu() -> str:
    """``Intel(R) Xeon(R) CPU @ 2.20GHz, AVX2``: the processor, and the instructions torch uses of it."""
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def sha256(path: Path) -> str | None:
    """The file's hash; ``None`` if it is not there."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def origin() -> dict[str, str]:
    """What ran and who called it, as facts of a run: ``versions``, ``command``, and of a checkout ``commit``.

    ``commit_of`` says whose commit it is: akd's, or the working folder's, where akd is installed and the checkout holds
    the experiments and networks of the user. ``uncommitted_changes`` is ``yes`` or ``no``, of files git knows.
    """
    facts = {"versions": versions()}
    if typed := command():
        facts["command"] = typed
    for whose, folder, member in (
        ("akd", Path(__file__).parent, "__init__.py"),
        ("the working folder", Path.cwd(), None),
    ):
        if found := commit(folder, member):
            facts |= {"commit": found[0], "commit_of": whose, "uncommitted_changes": "yes" if found[1] else "no"}
            break
    return facts


def commit(folder: Path, member: str | None = None) -> tuple[str, bool] | None:
    """The commit a folder is checked out at, and whether files that git knows were changed since.

    Args:
        member: a file of it that git must know: an environment inside a checkout is no part of it.

    Returns:
        ``None`` if it is no checkout, has no commit, or git is not there or does not answer.
    """
    if member is not None and _git(folder, "ls-files", "--error-unmatch", member) is None:
        return None
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    if not head:
        return None
    return head, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *words: str) -> str | None:
    # No locks, no helper programs that a checkout's own settings name.
    line = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=_PATIENCE_S, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """What was typed, without credentials; empty in an interactive session."""
    words = [word for word in sys.argv if word]
    if not words or words[0] == "-c":
        return ""
    known = [os.environ[name] for name in ("MLFLOW_TRACKING_URI", "AKD_STORAGE") if os.environ.get(name)]
    words[0] = Path(words[0]).name
    secrets = [*known, *[word.partition("=")[2] if word.startswith("--") else word for word in words if "://" in word]]
    return shlex.join(scrubbed(word, *secrets) for word in words)[:5000]


def note_data(folder: Path, config: DataConfig, data: TrainData) -> None:
    """Keep in a study's folder which data it reads, for :func:`data_of`. Equal digests are equal images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset, split = data.dataset, data.hash
    test = dataset.digest or _digest(dataset.test_images, dataset.test_labels)
    train, val = len(data.train), len(data.val)
    files = config.name in ("cifar10", "cifar100", "imagefolder")
    facts = {
        "name": config.name,
        "hash": split,
        "classes": len(dataset.classes),
        "shape": [dataset.channels, *dataset.size],
        "source_type": "local" if files else "code",
        "source": {"uri": scrubbed(str(config.dir)) if files else config.name},
        "parts": {
            "training": {"digest": f"{split}-train", "images": train},
            "validation": {"digest": f"{split}-val", "images": val},
            "training and validation": {"digest": f"{split}-all", "images": train + val},
            "test": {"digest": f"{test[:16]}-test", "images": len(dataset.test_labels)},
        },
    }
    checkpoint.write_json(folder / _DATA, facts)


def _digest(*tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def data_of(study: Path) -> dict[str, Any] | None:
    """What :func:`note_data` kept; ``None`` of a study of before that."""
    try:
        found: dict[str, Any] = json.loads((study / _DATA).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
