"""What a study's numbers depend on beside its experiment: versions and the bytes of its files."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from akd import __version__

_LIBRARIES = ("torch", "ray", "optuna", "mlflow", "numpy")


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
