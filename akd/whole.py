"""Samplers that know the space beforehand and decide on a configuration as a whole: QMC, grid, and the base of CMA-ES.

Optuna's own learn the space from the trials there are, so that the first one, and whatever has a condition, is drawn at
random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from akd.grid import next_cell
from akd.space import Parameter, Space


class Whole(BaseSampler):
    """Gives all values of a configuration at once, those of parameters too that turn out not to exist in it."""

    def __init__(self, space: Space):
        self.space = space

    def values(self, past: Sequence[FrozenTrial]) -> dict[str, Any]:
        """The next configuration as Optuna holds it.

        Args:
            past: the trials before it, by number.
        """
        raise NotImplementedError

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {p.key: distribution(p) for p in self.space.searched}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.values([t for t in study.get_trials(deepcopy=False) if t.number < trial.number])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> NoReturn:
        raise RuntimeError(f"{param_name} is not in the space this sampler was made for")


class QMC(Whole):
    """The ``number``-th point of a scrambled Sobol sequence (Owen 1997) over all parameters.

    One whose condition fails has a coordinate as well, which is then not looked at: the others stay evenly spread.
    """

    def __init__(self, space: Space, number: int, seed: int):
        super().__init__(space)
        self.number, self.seed = number, seed

    def values(self, past: Sequence[FrozenTrial]) -> dict[str, Any]:
        from scipy.stats import qmc  # half a second

        engine = qmc.Sobol(len(self.space.searched), scramble=True, seed=self.seed)
        if self.number:
            engine.fast_forward(self.number)
        point = engine.random(1)[0]
        return {p.key: p.told(from_unit(p, float(u))) for p, u in zip(self.space.searched, point, strict=True)}


class Grid(Whole):
    """The first cell of the grid, in the order of ``seed``, that no trial has."""

    def __init__(self, space: Space, seed: int):
        super().__init__(space)
        self.seed = seed

    def values(self, past: Sequence[FrozenTrial]) -> dict[str, Any]:
        cell = next_cell(self.space, self.seed, [t.params for t in past])
        if cell is None:
            raise RuntimeError("every cell of the grid was tried")
        return cell


def distribution(p: Parameter) -> BaseDistribution:
    """Optuna's word for a parameter, as :meth:`akd.space.Parameter.suggest` asks for it."""
    if p.kind == "choice":
        return CategoricalDistribution([p.told(c) for c in p.choices])
    if p.kind == "int":
        return IntDistribution(int(p.low), int(p.high), log=p.log, step=int(p.step or 1))
    return FloatDistribution(p.low, p.high, log=p.log, step=p.step)


def from_unit(p: Parameter, u: float) -> Any:
    """The value of a parameter at ``u`` (0..1) of its range; equal parts for choices and steps."""
    if p.kind == "choice":
        return p.choices[min(int(u * len(p.choices)), len(p.choices) - 1)]
    if p.kind == "int" and p.log:  # a whole number has the part of the scale that is rounded to it
        low, high = math.log(p.low - 0.5), math.log(p.high + 0.5)
        return min(max(round(math.exp(low + u * (high - low))), int(p.low)), int(p.high))
    if p.kind == "int" or p.step:
        step = p.step or 1
        parts = int((p.high - p.low) / step + 1e-9) + 1
        value = p.at_step(min(int(u * parts), parts - 1))
        return int(value) if p.kind == "int" else value
    if p.log:
        low, high = math.log(p.low), math.log(p.high)
        return min(max(math.exp(low + u * (high - low)), p.low), p.high)
    return min(p.low + u * (p.high - p.low), p.high)


def to_unit(p: Parameter, value: float) -> float:
    """The place (0..1) of a number in its range: the middle of its part for a step."""
    if p.kind == "int" and p.log:
        low, high = math.log(p.low - 0.5), math.log(p.high + 0.5)
        return (math.log(value) - low) / (high - low)
    if p.kind == "int" or p.step:
        step = p.step or 1
        parts = int((p.high - p.low) / step + 1e-9) + 1
        return (round((value - p.low) / step) + 0.5) / parts
    if p.log:
        return (math.log(value) - math.log(p.low)) / (math.log(p.high) - math.log(p.low))
    return (value - p.low) / (p.high - p.low)
