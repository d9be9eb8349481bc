"""CMA-ES and NSGA-II without memory: generations are worked out from the trials there are, by number.

With one trial at a time a generation is what was suggested from the one before it. With several, a trial that ends late
counts in its place by number, though it was suggested from an earlier generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cmaes
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from akd.pairs import batch
from akd.space import Space
from akd.whole import Whole, from_unit, to_unit


class StudyCMA(Whole):
    """CMA-ES (Hansen 2016, arXiv:1604.00772) on numbers, each on its own scale from 0 to 1, from the middle.

    It compares ranks alone, so trials that were stopped take part: behind those that came further, as TPE has them.
    Failed ones do not.
    """

    def __init__(self, space: Space, seed: int):
        super().__init__(space)
        self.seed = seed
        self.moved = [p for p in space.searched if p.low < p.high]

    def values(self, past: Sequence[FrozenTrial]) -> dict[str, Any]:
        size, dimensions = batch(len(self.moved)), len(self.moved)
        optimizer = cmaes.CMA(
            mean=np.full(dimensions, 0.5),
            sigma=1 / 6,
            bounds=np.tile([0.0, 1.0], (dimensions, 1)),
            n_max_resampling=10 * dimensions,
            seed=self.seed,
            population_size=size,
        )
        told = [t for t in past if _counts(t) and all(p.key in t.params for p in self.moved)]
        for first in range(0, len(told) - size + 1, size):
            best_first = sorted(told[first : first + size], key=_merit, reverse=True)
            places = [np.array([to_unit(p, t.params[p.key]) for p in self.moved]) for t in best_first]
            optimizer.tell([(place, float(rank)) for rank, place in enumerate(places)])
        point = np.clip(optimizer.ask(), 0.0, 1.0)
        found = {p.key: from_unit(p, float(u)) for p, u in zip(self.moved, point, strict=True)}
        return {p.key: found.get(p.key, p.low) for p in self.space.searched}


def _counts(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and bool(trial.intermediate_values))


def _merit(trial: FrozenTrial) -> tuple[bool, int, float]:
    """Finished ones first, then those that came further, then the better ones."""
    epoch = max(trial.intermediate_values, default=0)
    done = trial.state == TrialState.COMPLETE
    value = trial.values[0] if done else trial.intermediate_values[epoch]
    return done, epoch, value if value == value else float("-inf")


class StudyNSGA2(optuna.samplers.NSGAIISampler):
    """Optuna's NSGA-II (Deb et al. 2002) with generations by number of finished trials."""

    def __init__(self, population: int, seed: int):
        super().__init__(population_size=population, seed=seed)
        self._finished: list[FrozenTrial] | None = None
        self._parents: dict[int, list[FrozenTrial]] = {0: []}

    def _complete(self, study: optuna.Study) -> list[FrozenTrial]:
        if self._finished is None:  # of one suggestion: this object makes no second one
            self._finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return self._finished

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """As many as were completed before it."""
        assert self.population_size is not None
        return len(self._complete(study)) // self.population_size

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Its finished trials, by number."""
        assert self.population_size is not None
        return self._complete(study)[generation * self.population_size : (generation + 1) * self.population_size]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The elite of all generations before, selected one after the other."""
        for each in range(1, generation + 1):
            if each not in self._parents:
                self._parents[each] = self.select_parent(study, each)
        return self._parents[generation]
