"""Images read one step ahead: a thread reads the next batch, from disk if need be, while the step before runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Ahead:
    """What will be asked for is read by a thread of its own; what was not foreseen is read at once.

    Only the time changes: which rows a step reads is known before it, and reading draws nothing.

    Args:
        read: rows [b] -> images; called by one thread at a time besides the caller's.
    """

    def __init__(self, read: Callable[[Tensor], Tensor]):
        self.read = read
        self.coming: deque[tuple[Tensor, Future[Tensor]]] = deque()
        self.thread = ThreadPoolExecutor(1, "akd-read-ahead")

    def expect(self, rows: Tensor) -> None:
        """``rows`` will be asked for, after what was announced before them."""
        self.coming.append((rows, self.thread.submit(self.read, rows)))

    def take(self, rows: Tensor) -> Tensor:
        """The images of ``rows``; an error of reading them is raised here."""
        if self.coming and torch.equal(self.coming[0][0], rows):
            return self.coming.popleft()[1].result()
        return self.read(rows)

    def close(self) -> None:
        """Nothing more is read."""
        self.thread.shutdown(cancel_futures=True)
