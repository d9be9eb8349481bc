"""The line between a run's workers and whoever started them: news one way, "go on" or "stop" the other.

Ray Train tells Tune of an epoch when it gets round to it, and the workers train on meanwhile: how far a trial gets
before the scheduler stops it would hang on the clock. Here a worker waits for the answer, as a trial in one process
does, so a stopped trial ends at its rung, and it ends by itself: no process is killed, no resource leaks.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Relay:
    """A Ray actor without CPUs, one for each group of workers."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
        self._open: dict[int, asyncio.Future[bool]] = {}
        self._count = 0
        self._closed = False

    async def tell(self, message: dict[str, Any]) -> bool:
        """A worker's news; the answer is true if the worker should stop."""
        if self._closed:
            return True
        self._count += 1
        ticket = self._count
        self._open[ticket] = asyncio.get_running_loop().create_future()
        await self._news.put((ticket, message))
        return await self._open[ticket]

    async def next(self) -> tuple[int, dict[str, Any]]:
        """The oldest news and its ticket; waits for some."""
        return await self._news.get()

    async def answer(self, ticket: int, stop: bool) -> None:
        """Let the worker behind a ticket go on or stop."""
        future = self._open.pop(ticket, None)
        if future is not None and not future.done():
            future.set_result(stop)

    async def close(self) -> None:
        """Everybody stops, now and from now on."""
        self._closed = True
        for ticket in list(self._open):
            await self.answer(ticket, True)
