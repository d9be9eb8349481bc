"""Shared by all tests: one thread, so that figures repeat, and no address of a Ray or MLflow outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AKD_DATA_DIR"):
    os.environ.pop(name, None)

# Ray's workers give way to all other processes; beside a second pytest they would hardly run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so

# What a background job of a shell ignores, it and all it starts would ignore for good.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import torch  # noqa: E402 - after the environment is clean

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one at the end of ``pytest -n 2``."""
    first = Path(__file__).parent / "integration"
    items.sort(key=lambda item: first not in item.path.parents)
