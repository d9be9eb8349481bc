"""The workers that share one training run, as the loop and the methods see them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """One worker alone. :class:`akd.ddp.Group` is several."""

    rank: int = 0
    size: int = 1

    def share(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """First and last+1 position of a worker's share of ``total`` rows; sizes differ by at most one.

        Args:
            rank: default this worker.
        """
        rank = self.rank if rank is None else rank
        return total * rank // self.size, total * (rank + 1) // self.size

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        """The shares [b, ...] of ``total`` rows of all workers joined in rank order.

        Gradients flow back on the promise that every worker makes the same loss from what it gathered and that the
        workers' gradients are averaged afterwards.
        """
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the workers, without gradient."""
        return tensor

    def any(self, flag: bool) -> bool:
        """True for every worker if it is for one."""
        return flag

    def first(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """What worker 0 has."""
        return values

    def wrap(self, module: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """A module whose gradients become the workers' mean in the backward pass; same parameters.

        Every step must use the same of them; those it leaves out keep no gradient.

        Args:
            in_parts: :meth:`local` will be used.
        """
        return module

    def local(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within the block a wrapped module's gradients stay this worker's own, to be added to."""
        return nullcontext()

    def synchronised(self, module: nn.Module) -> nn.Module:
        """The module with batch statistics taken over all workers; same parameters and names."""
        return module


ALONE = World()
