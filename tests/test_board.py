"""Numbers exchanged through shared memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from workers import together

from akd import board
from akd.board import WIDTH, Board
from akd.ddp import Group


def exchanged(world: Group) -> Any:
    made = board.shared_board()
    assert made is not None
    draw = torch.Generator().manual_seed(world.rank)
    mine, theirs = [], []
    for step in range(300):
        dtype = torch.float64 if step % 3 else torch.float32
        x = torch.randn(1 + (step * 37) % WIDTH, generator=draw).to(dtype)
        mine.append(x)
        theirs.append(made.exchange(x))
    return mine, theirs


def test_everybody_gets_what_everybody_put_up(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").glob("akd-*"))
    results = together(3, tmp_path, exchanged)
    for _, theirs in results:
        for step, rows in enumerate(theirs):
            for rank, (mine, _) in enumerate(results):
                if len(mine[step]) == rows.shape[1]:
                    assert torch.equal(rows[rank], mine[step])
                    assert rows.dtype == mine[step].dtype
    assert set(Path("/dev/shm").glob("akd-*")) == before  # nothing is left behind


def without_memory(world: Group, folder: str) -> bool:
    with mock.patch.object(board, "_FOLDER", Path(folder) / "not there"):
        return board.shared_board() is None


def test_where_there_is_no_shared_memory_nobody_has_a_board(tmp_path: Path) -> None:
    assert together(2, tmp_path, without_memory, str(tmp_path)) == [True, True]


def elsewhere(world: Group) -> bool:
    """Worker 1 does not see the file, as on another machine."""
    with mock.patch.object(Path, "exists", return_value=False) if world.rank == 1 else nullcontext():
        made = board.shared_board()
        dist.barrier()
    return made is None


def test_workers_on_two_machines_have_no_board(tmp_path: Path) -> None:
    assert together(2, tmp_path, elsewhere) == [True, True]


def test_a_worker_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "TIMEOUT_S", 0.0)
    path = tmp_path / "memory"
    path.write_bytes(bytes(8 * Board.numbers(2)))
    with pytest.raises(RuntimeError, match="a worker did not come"):
        Board(path, 0, 2).exchange(torch.ones(3))
