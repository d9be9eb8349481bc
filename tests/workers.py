"""Several workers of one run as processes of this machine, joined by gloo: no Ray."""

from __future__ import annotations

import atexit
import gc
import itertools
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from akd.ddp import Group


def _serve(calls: Connection) -> None:
    """Do the tasks that come until the other end closes."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            rank, size, meeting, task, arguments = pickle.loads(calls.recv_bytes())
        except EOFError:
            # Without the interpreter's own end, in which torch's threads may abort the process.
            os._exit(0)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        try:
            result: Any = task(Group.joined(torch.device("cpu")), *arguments)
        except Exception:
            result = traceback.format_exc()
        calls.send_bytes(pickle.dumps(result))  # as bytes: torch would lend its memory to the other process
        gc.collect()  # what still holds the group, DDP among it
        dist.destroy_process_group()


class _Pool:
    """Processes that are started once: importing torch takes them longer than most tasks do."""

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.calls: list[Connection] = []
        self.meetings = itertools.count()
        atexit.register(self.close)

    def run(self, size: int, folder: Path, task: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        while len(self.processes) < size:
            mine, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.calls.append(mine)
        meeting = folder / f"meet-{next(self.meetings)}"
        for rank, call in enumerate(self.calls[:size]):
            call.send_bytes(pickle.dumps((rank, size, str(meeting), task, arguments)))
        try:
            return [pickle.loads(call.recv_bytes()) for call in self.calls[:size]]
        except BaseException:  # a worker that died, or a test that ran out of time: the others may wait for it
            self.close()
            raise

    def close(self) -> None:
        for call in self.calls:
            call.close()
        for process in self.processes:
            process.kill()
        self.processes, self.calls = [], []


_POOL = _Pool()


def together(size: int, folder: Path, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``task(world, *arguments)`` gives on each of ``size`` workers, in rank order.

    Args:
        task: a function of a module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = _POOL.run(size, folder, task, arguments)
    for result in results:
        assert not (isinstance(result, str) and result.startswith("Traceback")), result
    return results
