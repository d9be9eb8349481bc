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


class _Statistics(torch.autograd.Function):
    """[K] of each worker as [workers, K]; the gradient is the sum of what all workers made of this one's row."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _exchanged(mine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        everybody = _exchanged(grads[0].flatten()).view(-1, *grads[0].shape)
        return everybody[:, dist.get_rank()].sum(0)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all workers' rows, on any backend (torch's own refuses CPU tensors).

    Workers exchange mean, variance and count, once forward and once backward.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least two dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [d for d in range(input.dim()) if d != 1]
        wide = input if input.dtype == torch.float64 else input.float()
        count = wide.numel() // wide.shape[1]
        var, mean = torch.var_mean(wide, axes, correction=0)
        means, variances, counts = _Statistics.apply(torch.cat([mean, var, mean.new_tensor([count])])).split(
            [len(mean), len(var), 1], dim=1
        )
        total = counts.sum()
        shares = counts / total
        mean = (shares * means).sum(0)
        # Of deviations, not of squares: no cancellation where the mean is large.
        var = (shares * (variances + (means - mean) ** 2)).sum(0)
        self._remember(mean.detach(), var.detach(), total)
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            scale = scale * self.weight
            shift = -mean * scale + self.bias
        shape = [1, -1] + [1] * (input.dim() - 2)
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_((var * total / (total - 1)).to(self.running_var), factor)


def _convert(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        new = SyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        # The very tensors: optimizer and average must not lose sight of them.
        new._parameters, new._buffers = module._parameters, module._buffers
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module


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
        return _convert(module)
