"""Signals that wait for a step to end: a Ray that is only half started can be neither used nor left in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within the block the first SIGINT, SIGTERM or SIGHUP is kept for its end; a second one is not.

    Afterwards the handlers are those of before, also where the block has set others: Ray's would end the program
    without a word, outside Python with a stack trace.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handler(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    watched = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in watched}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        if asked:  # also where the step itself failed: a Ctrl-C reaches the processes that it starts, too
            raise KeyboardInterrupt from None
