"""Several workers of one run as processes of this machine, joined by gloo: no Ray."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from akd.ddp import Group


def _work(rank: int, size: int, folder: str, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    try:
        result: Any = task(Group.joined(torch.device("cpu")), *arguments)
    except Exception:
        result = traceback.format_exc()
    Path(folder, f"out-{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def together(size: int, folder: Path, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``task(world, *arguments)`` gives on each of ``size`` workers, in rank order.

    Args:
        task: a function of a module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_work, (size, str(folder), task, arguments), nprocs=size, start_method="spawn")
    results = [pickle.loads((folder / f"out-{rank}").read_bytes()) for rank in range(size)]
    for result in results:
        assert not isinstance(result, str), result
    return results
