"""Rungs: the epochs at which a scheduler decides, and after which a learning rate may start again. No Ray here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akd.config import SearchConfig


def rungs(epochs: int, grace: int | None, eta: int) -> list[int]:
    """Epochs at which trials may be stopped: grace * eta^k, up to ``epochs``; default grace max(1, epochs // 9)."""
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


def stages(search: SearchConfig, epochs: int) -> list[int]:
    """The epochs at which parts of a trial end, of which each is run as a whole: rungs, and the last epoch.

    Without a scheduler a trial is one part.
    """
    if search.scheduler == "none":
        return [epochs]
    found = rungs(epochs, search.grace, search.eta)
    return found if found[-1] == epochs else [*found, epochs]


def passing(search: SearchConfig) -> float:
    """The share of trials that a rung is expected to let through."""
    return {"asha": 1 / search.eta, "median": 0.5}.get(search.scheduler, 1.0)


def expected_epochs(search: SearchConfig, epochs: int) -> float:
    """Epochs of a trial on average, if rungs let through as many as they are expected to."""
    total, before, alive = 0.0, 0, 1.0
    for end in stages(search, epochs):
        total += alive * (end - before)
        before, alive = end, alive * passing(search)
    return total


def expected_to_finish(search: SearchConfig, epochs: int) -> float:
    """Trials that are expected to come to their last epoch."""
    return search.trials * passing(search) ** (len(stages(search, epochs)) - 1)
