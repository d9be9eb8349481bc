"""Shared by all tests: one thread, so that figures repeat, and no address of a Ray or MLflow outside."""

from __future__ import annotations

import os

for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AKD_DATA_DIR"):
    os.environ.pop(name, None)

import torch  # noqa: E402 - after the environment is clean

torch.set_num_threads(1)
