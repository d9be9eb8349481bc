"""Signals while Tune runs: the first ends it in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from akd.tuning import _graceful


@pytest.fixture
def hung_up() -> Iterator[Callable[[], None]]:
    """Ends this process's connection as a lost terminal does; nobody is left with our handlers."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda: os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


def test_a_lost_connection_ends_a_search_in_order(hung_up: Callable[[], None]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    closed = []
    with _graceful(lambda: closed.append(True)) as asked:
        hung_up()
        assert asked.is_set()
        assert closed == [True]
        with pytest.raises(KeyboardInterrupt):
            hung_up()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_nohup_still_ignores_it(hung_up: Callable[[], None]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _graceful(lambda: None) as asked:
        hung_up()
        assert not asked.is_set()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
