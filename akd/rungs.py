"""Rungs: the epochs at which a scheduler may stop a trial, and after which a learning rate may start again."""

from __future__ import annotations


def rungs(epochs: int, grace: int | None, eta: int) -> list[int]:
    """Epoch counts at which ASHA decides: grace * eta^k, up to ``epochs``; default grace max(1, epochs // 9)."""
    first = min(grace or max(1, epochs // 9), epochs)
    found = [first]
    while found[-1] * eta <= epochs:
        found.append(found[-1] * eta)
    return found


def restarts(epochs: int, grace: int | None, eta: int) -> list[int]:
    """The rungs after which the learning rate starts again: those of the first half.

    The last cycle is as long as all before it together, at least. Of 60 epochs with rungs at 6, 18 and 54 it goes from
    18 to 60: one of six epochs alone at its end would cost the student more than the decision at 54, which lies in the
    low end of the cycle anyway, could gain.
    """
    return [rung for rung in rungs(epochs, grace, eta) if 2 * rung <= epochs]
