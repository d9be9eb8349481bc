"""Several workers on one run, through torch.distributed: gathering, gradients, batch statistics.

The process group is made by whoever starts the workers. Everything here is a collective: all workers must come by.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from akd.board import WIDTH, Board, shared_board
from akd.models.norm import replaced
from akd.world import World

#: Of this process's group, where all its workers are on one machine; made with the group.
_board: Board | None = None


def _exchanged(mine: Tensor) -> Tensor:
    """[K] of each worker as [workers, K]."""
    if _board is not None and len(mine) <= WIDTH and mine.dtype in (torch.float32, torch.float64):
        return _board.exchange(mine)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """Rows of all workers. Every worker makes the same loss of them, so the sum of the gradients needs no exchange."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group, total: int) -> Tensor:
        ctx.bounds, ctx.size = group.share(total), group.size
        lengths = [high - low for low, high in (group.share(total, r) for r in range(group.size))]
        mine = tensor.contiguous()
        if len(tensor) < max(lengths):  # all_gather wants equal shapes; shares differ by one row at most
            mine = torch.cat([mine, mine.new_zeros(max(lengths) - len(mine), *mine.shape[1:])])
        parts = list(_exchanged(mine.flatten()).view(group.size, *mine.shape))
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        low, high = ctx.bounds
        return grads[0][low:high] * ctx.size, None, None


@dataclass(frozen=True)
class Group(World):
    """The workers of the process group that this process has joined.

    Attributes:
        device: where this worker trains; on CUDA torch's own batch normalisation over workers is used.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def joined(cls, device: torch.device) -> Group:
        """Rank and size as the process group has them; a collective."""
        global _board
        _board = shared_board() if device.type == "cpu" else None
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        return _Gather.apply(tensor, self, total)

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def first(self, values: tuple[int, ...]) -> tuple[int, ...]:
        mine = values if self.rank == 0 else [0] * len(values)
        told = self.sum(torch.tensor(mine, dtype=torch.float64, device=self.device))
        return tuple(int(v) for v in told.tolist())

    def wrap(self, module: nn.Module, *, in_parts: bool = False) -> nn.Module:
        # Buffers are equal on all workers already. Methods may leave parameters out of a stage (head epochs leave out
        # the whole student), which must then keep no gradient at all, or weight decay would move them: a static graph
        # finds them in its first step, and asks nobody in the others. It cannot begin with a part of a step.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name of an argument changes with torch 2.15
            return DistributedDataParallel(
                module,
                broadcast_buffers=False,
                static_graph=not in_parts,
                find_unused_parameters=in_parts,
                gradient_as_bucket_view=True,
            )

    def local(self, module: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(module, DistributedDataParallel)
        return module.no_sync()

    def synchronised(self, module: nn.Module) -> nn.Module:
        if self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return replaced(module, lambda m: isinstance(m, nn.modules.batchnorm._BatchNorm), _exchanged)
