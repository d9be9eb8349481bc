"""One thread that brings a server in line with folders: patient, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from akd.errors import is_full
from akd.logged import scrubbed


class Background:
    """Folders with news, and jobs after them, handled one at a time by a thread of their own until each succeeds.

    Args:
        uri: the server's address, whose credentials no message shows.
        on_trouble: called once each time the server stops answering, with one line.
        retry_s: pause before a failed write is tried again; doubles up to thirty seconds.

    Attributes:
        closed: whether everything had been taken when it was closed; ``None`` before.
    """

    def __init__(self, uri: str, on_trouble: Callable[[str], None], retry_s: float):
        self.uri, self.on_trouble, self.retry_s = uri, on_trouble, retry_s
        self.closed: bool | None = None
        self._dirty: dict[Path, float] = {}
        self._jobs: list[Callable[[], None]] = []
        self._wake, self._idle = threading.Condition(), threading.Event()
        self._closing = self._given_up = self._away = False
        self._taken = 0
        self._thread = threading.Thread(target=self._work, name="akd-tracking", daemon=True)
        self._thread.start()

    def _sync(self, folder: Path) -> None:
        """Bring the server in line with a folder."""
        raise NotImplementedError

    def _beside_s(self) -> float | None:
        """Seconds until :meth:`_beside` is due; ``None`` is never."""
        return None

    def _beside(self) -> None:
        """What is done every now and then beside folders and jobs, and not waited for at the end."""

    # -- what others call: never blocks, never raises -----------------------------------------------

    def changed(self, folder: Path, delay: float = 0.0) -> None:
        """Say that a run's folder has news; ``delay`` gathers several epochs into one write."""
        with self._wake:
            due = time.monotonic() + delay
            self._dirty[folder] = min(due, self._dirty.get(folder, due))
            self._idle.clear()
            self._wake.notify()

    def later(self, job: Callable[[], None]) -> None:
        """Run ``job`` in the tracking thread, after what is pending; repeated until it succeeds."""
        with self._wake:
            self._jobs.append(job)
            self._idle.clear()
            self._wake.notify()

    def close(self, patience_s: float = 60.0) -> bool:
        """Write what is pending and end the thread; False if MLflow took nothing for ``patience_s`` and some is left.

        A slow one is waited for, however much a search of thousands of trials has left.
        """
        with self._wake:
            self._closing = True
            self._dirty = dict.fromkeys(self._dirty, 0.0)
            self._wake.notify()
        taken = self._taken
        while not (done := self._idle.wait(patience_s)) and self._taken != taken:
            taken = self._taken
            self.on_trouble(f"MLflow is taking what is left, {len(self._dirty)} runs to go")
        with self._wake:
            self._given_up = not done
            self._dirty.clear()
            self._jobs.clear()
            self._wake.notify()
        self._thread.join(5)
        self.closed = done
        return done

    # -- the thread --------------------------------------------------------------------------------

    def _next(self) -> Path | Callable[[], None] | None:
        with self._wake:
            while True:
                now = time.monotonic()
                # First: a search of many short trials has always something else to write.
                beside = None if self._closing else self._beside_s()
                if beside is not None and beside <= 0:
                    return self._beside
                due = [f for f, at in self._dirty.items() if at <= now]
                if due:
                    del self._dirty[due[0]]
                    return due[0]
                if self._jobs and not self._dirty:
                    return self._jobs.pop(0)
                if not self._dirty and not self._jobs:
                    self._idle.set()
                    if self._closing:
                        return None
                waits = [max(0.05, min(self._dirty.values()) - now)] if self._dirty else []
                waits += [beside] if beside is not None else []
                self._wake.wait(min(waits, default=None))

    def _work(self) -> None:
        pause = self.retry_s
        while (job := self._next()) is not None:
            try:
                if isinstance(job, Path):
                    self._sync(job)
                else:
                    job()
                self._away, pause = False, self.retry_s
                self._taken += 1
            except Exception as error:  # whatever MLflow or the network raises must not end the thread
                if not self._away:
                    # Scrubbed before it is cut: half an address would no longer be known as one.
                    reason = (
                        scrubbed(str(error).splitlines()[0], self.uri)[:200] if str(error) else type(error).__name__
                    )
                    reason = "the disk is full" if is_full(error) else reason
                    self.on_trouble(f"MLflow did not take a write and will be filled in later: {reason}")
                self._away = True
                with self._wake:
                    if self._given_up:
                        return
                    if isinstance(job, Path):
                        self._dirty.setdefault(job, time.monotonic() + pause)
                    elif job != self._beside:  # which comes again by itself
                        self._jobs.insert(0, job)
                time.sleep(min(pause, 1.0) if self._closing else pause)
                pause = min(2 * pause, 30.0)
