"""The workers that share one training run, as the loop and the methods see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class World:
    """One worker alone. A carrier for several overrides :meth:`gather` and :meth:`sum`."""

    rank: int = 0
    size: int = 1

    def share(self, batch_size: int) -> tuple[int, int]:
        """First and last+1 position of this worker's share of a global batch; sizes differ by at most one."""
        bounds = [batch_size * r // self.size for r in (self.rank, self.rank + 1)]
        return bounds[0], bounds[1]

    def gather(self, tensor: Tensor) -> Tensor:
        """[b, ...] of every worker joined along the batch, in rank order; gradients flow back."""
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the workers, without gradient."""
        return tensor


ALONE = World()
