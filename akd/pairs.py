"""What does not go together: samplers and schedulers that would only seem to do their work in a search.

Each is refused before anything starts, with what would really happen and what to use instead. No Optuna, no Ray.
"""

from __future__ import annotations

import math

from akd.config import Experiment, SearchConfig
from akd.errors import ExperimentError, many
from akd.grid import MOST_CELLS, count
from akd.rungs import expected_to_finish, rungs
from akd.space import Space

#: The median of fewer trials is no bar to hold another one to.
LEAST_FOR_MEDIAN = 3


def startup(search: SearchConfig) -> int:
    """Trials at random before TPE or GP learn: a quarter of a short search; Optuna's ten would be all of it."""
    return min(10, max(4, search.trials // 4))


def population(experiment: Experiment) -> int:
    """Trials of a generation of NSGA-II: a quarter of those that are expected to finish, 8 to 50 (Optuna's)."""
    return min(50, max(8, int(expected_to_finish(experiment.search, experiment.train.epochs) / 4)))


def batch(dimensions: int) -> int:
    """Trials of a generation of CMA-ES (Hansen 2016, arXiv:1604.00772, equation 48)."""
    return 4 + math.floor(3 * math.log(dimensions))


def check(experiment: Experiment, space: Space) -> None:
    """Refuse a sampler or a scheduler that cannot do its work on this space, or in so few trials.

    Raises:
        ExperimentError: names the sampler or scheduler, what would happen, and what to use instead.
    """
    name = experiment.search.sampler
    if name == "grid":
        _grid(experiment, space)
    if name in ("cmaes", "gp", "nsga2"):
        _conditions(experiment, space)
    if name == "cmaes":
        _cmaes(experiment, space)
    if name == "gp":
        _finish(experiment, startup(experiment.search), "learns from finished trials alone, and only from more than")
    if name == "nsga2":
        _finish(experiment, population(experiment), "breeds from finished trials alone, and only from more than")
    if experiment.search.scheduler == "median":
        _median(experiment)


def grid_words(experiment: Experiment, space: Space) -> str | None:
    """How a grid compares with the trials that are asked for; ``None`` for another sampler."""
    search = experiment.search
    if search.sampler != "grid":
        return None
    size = count(space)
    if size < search.trials:
        return f"the grid has {many(size, 'cell')}: the search ends after {size} of {many(search.trials, 'trial')}"
    if size > search.trials:
        shuffled = f"{search.trials} of them are tried, in mixed order; --trials {size} tries all"
        return f"the grid has {many(size, 'cell')}: {shuffled}"
    return f"the grid has {many(size, 'cell')}, as many as trials are asked for"


def _refused(key: str, experiment: Experiment, problem: str) -> ExperimentError:
    value, full = getattr(experiment.search, key), f"search.{key}"
    return ExperimentError(problem, key=full, value=value, where=experiment.origins.of(full))


def _grid(experiment: Experiment, space: Space) -> None:
    for p in space.searched:
        key = f"space.{p.key}"
        if p.kind == "float" and p.step is None and p.low < p.high:
            problem = "a grid needs a step here, or choices; search.sampler qmc spreads trials over a range"
            raise ExperimentError(problem, key=key, value=f"{p.low:g} to {p.high:g}", where=experiment.origins.of(key))
        if p.kind == "int" and p.log:
            problem = "a grid takes every whole number, so that log has no effect; give choices, like [4, 8, 16, 32]"
            raise ExperimentError(problem, key=key, value=f"{p.low:g} to {p.high:g}", where=experiment.origins.of(key))
    if count(space) > MOST_CELLS:
        problem = f"has more than {MOST_CELLS:,} cells on this space; give larger steps or fewer choices, or use qmc"
        raise _refused("sampler", experiment, problem)


def _conditions(experiment: Experiment, space: Space) -> None:
    for p in space.searched:
        if p.when:
            name = experiment.search.sampler
            problem = f"draws what has a condition ({p.key}) at random, whatever was found; use tpe, or leave it out"
            where = experiment.origins.of("search.sampler") or experiment.origins.of(f"space.{p.key}.when")
            raise ExperimentError(problem, key="search.sampler", value=name, where=where)


def _cmaes(experiment: Experiment, space: Space) -> None:
    moved = [p for p in space.searched if p.kind != "choice" and p.low < p.high]
    choices = [p.key for p in space.searched if p.kind == "choice"]
    if choices:
        problem = f"moves numbers alone, and {choices[0]} has choices; use tpe, gp or nsga2, or fix them"
        raise _refused("sampler", experiment, problem)
    if not moved:
        raise _refused("sampler", experiment, "moves numbers, and none here has more than one value; use grid")
    first = batch(len(moved))
    if experiment.search.trials <= first:
        problem = (
            f"draws its first {first} trials around the middle of {many(len(moved), 'range')} and learns from then on; "
            f"more than {first} trials are needed, or qmc"
        )
        raise _refused("trials", experiment, problem)


def _finish(experiment: Experiment, needed: int, does: str) -> None:
    search = experiment.search
    finishing = expected_to_finish(search, experiment.train.epochs)
    if finishing > needed:
        return
    fewer = f"of {search.trials} trials about {finishing:.0f} finish with {search.scheduler}"
    few = f"{search.trials} trials are at random" if search.scheduler == "none" else fewer
    instead = "more trials, or tpe" if search.scheduler == "none" else "scheduler none, more trials, or tpe"
    raise _refused("sampler", experiment, f"{does} {needed}; {few}; use {instead}")


def _median(experiment: Experiment) -> None:
    search, epochs = experiment.search, experiment.train.epochs
    if search.trials <= LEAST_FOR_MEDIAN:
        problem = (
            f"compares a trial with at least {LEAST_FOR_MEDIAN} before it, and there are {search.trials}; use none"
        )
        raise _refused("scheduler", experiment, problem)
    if rungs(epochs, search.grace, search.eta)[0] >= epochs:
        problem = f"stops no trial: its first rung is the last of {many(epochs, 'epoch')}; use none, or a smaller grace"
        raise _refused("scheduler", experiment, problem)
