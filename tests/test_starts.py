"""Runs that are begun again and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from akd import starts
from akd.errors import RunError


def add_epoch(folder: Path, epoch: int) -> None:
    with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"epoch": epoch}) + "\n")


def test_a_run_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    for _ in range(starts.MOST):
        starts.begin(tmp_path, "a")
    with pytest.raises(RunError, match="died 4 times in epoch 1"):
        starts.begin(tmp_path, "a")


def test_progress_and_other_sessions_count_for_nothing(tmp_path: Path) -> None:
    for epoch in range(1, 4):
        for _ in range(starts.MOST):
            starts.begin(tmp_path, "a")
        add_epoch(tmp_path, epoch)
    for session in ("b", "c"):
        for _ in range(starts.MOST):
            starts.begin(tmp_path, session)
    with pytest.raises(RunError, match="in epoch 4"):
        starts.begin(tmp_path, "c")


def test_notes_that_are_damaged_are_begun_again(tmp_path: Path) -> None:
    (tmp_path / "starts.json").write_text("{")
    starts.begin(tmp_path, "a")
    assert json.loads((tmp_path / "starts.json").read_text())["times"] == 1
