"""Signals that are kept for the end of a step."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from akd.signals import held_back


def test_one_waits_for_the_end() -> None:
    reached = []

    def step() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(1)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert reached == [1]


def test_a_second_does_not() -> None:
    reached = []

    def step() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert reached == [1]


def test_it_wins_over_what_it_broke() -> None:
    def step() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("a child died of it")

    with pytest.raises(KeyboardInterrupt):
        step()


def test_handlers_are_those_of_before_and_ignored_ones_stay() -> None:
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    own = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(s) for s in watched]
        with held_back():
            signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
            os.kill(os.getpid(), signal.SIGHUP)
        assert [signal.getsignal(s) for s in watched] == before
    finally:
        signal.signal(signal.SIGHUP, own)


def test_in_another_thread_nothing_is_touched() -> None:
    found = []

    def work() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
