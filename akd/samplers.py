"""The samplers by name: each suggestion follows from a study's seed, its number and the trials before it alone.

Nothing else is kept between two suggestions, in memory or in the study, so that a search that was interrupted, or whose
journal was lost, suggests what it would have suggested. Optuna's CMA-ES, NSGA-II and QMC keep state in the study (that
of CMA-ES as a pickle, which would be loaded from a folder that comes from anywhere): here it is worked out again from
the trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from akd.config import Experiment
from akd.evolution import StudyCMA, StudyNSGA2
from akd.grid import next_cell
from akd.pairs import population, startup
from akd.seeds import derive
from akd.space import Space, parse
from akd.whole import QMC, Grid


def make_sampler(experiment: Experiment, number: int, space: Space | None = None) -> BaseSampler:
    """The sampler of suggestion ``number``.

    Args:
        number: of the trials that are there already.
        space: of the experiment, where it is parsed already.
    """
    search = experiment.search
    seed = derive("suggest", search.seed, number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _MAKERS[search.sampler](experiment, space or parse(experiment), number, seed)


def used_up(experiment: Experiment, space: Space, past: Sequence[FrozenTrial]) -> bool:
    """True if the sampler has nothing more to suggest: a grid all of whose cells were tried."""
    search = experiment.search
    return search.sampler == "grid" and next_cell(space, search.seed, [t.params for t in past]) is None


def _tpe(experiment: Experiment, space: Space, number: int, seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed,
        # Parameter by parameter: a joint density of several wants more trials than a search has.
        multivariate=False,
        constant_liar=True,
        n_startup_trials=startup(experiment.search),
    )


class StudyGP(optuna.samplers.GPSampler):
    """Optuna's Gaussian process, on one thread: more of them add in another order and would suggest another value."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return super().sample_relative(study, trial, search_space)
        finally:
            torch.set_num_threads(threads)


_MAKERS: dict[str, Callable[[Experiment, Space, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": lambda experiment, space, number, seed: StudyGP(seed=seed, n_startup_trials=startup(experiment.search)),
    "cmaes": lambda experiment, space, number, seed: StudyCMA(space, seed),
    "nsga2": lambda experiment, space, number, seed: StudyNSGA2(population(experiment), seed),
    "qmc": lambda experiment, space, number, seed: QMC(space, number, derive("qmc", experiment.search.seed) % 2**32),
    "random": lambda experiment, space, number, seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda experiment, space, number, seed: Grid(space, experiment.search.seed),
}
