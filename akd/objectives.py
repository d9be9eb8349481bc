"""What a search looks for: accuracy, alone or together with what a student costs; and what a student may cost at most.

    search: {objectives: [accuracy, parameters, latency_1], constraints: {flops: 30 M, latency_1: 3 ms}}

* ``accuracy`` (higher is better) is always one of the objectives. It is what the scheduler stops by, what names the
  winner, and what final runs compare.
* ``parameters``, ``flops``, ``latency_1`` and ``latency_64`` (lower is better) are facts of the student's architecture,
  known before it trains: see :mod:`akd.costs`. They tell trials apart only where the space searches ``student.name``.

With several objectives Optuna's study has as many directions, in the order of ``search.objectives``, accuracy first.
A finished trial is told all its values. A stopped one is told PRUNED with its curve, as ever, and a sampler sees it
behind every finished one: the scheduler has compared it with trials of the same architecture, which cost the same (see
:mod:`akd.apart`), so what is stopped is what another of equal cost beats, and no place on the front is lost.

Constraints are kept before the search: an architecture that breaks one is taken out of the space, and never trained
(:mod:`akd.architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from akd.errors import ExperimentError
from akd.settings import Origins, build, setting

if TYPE_CHECKING:
    from akd.config import SearchConfig

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Cost:
    """A cost of an architecture.

    Attributes:
        metric: what it is called in run folders and in MLflow.
        words: what it is called on screens, with its unit.
        unit: of a figure: nothing for a count, else ``ms``.
        batch: images of a forward pass that is timed; 0 for a count.
    """

    metric: str
    words: str
    unit: str = ""
    batch: int = 0

    def shown(self, value: float) -> str:
        """``77.8 k``, ``1.53 M``, ``0.42 ms``."""
        if self.unit:
            return f"{value:.3g} {self.unit}"
        for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:g}"


COSTS = {
    "parameters": Cost("cost/parameters", "parameters"),
    "flops": Cost("cost/flops", "FLOPs of an image"),
    "latency_1": Cost("cost/latency_1_ms", "ms for one image", "ms", 1),
    "latency_64": Cost("cost/latency_64_ms", "ms for 64 images", "ms", 64),
}
NAMES = (ACCURACY, *COSTS)
#: Samplers of Optuna 5 that refuse a study of several directions.
ONE_DIRECTION = ("cmaes",)


@dataclass(frozen=True, kw_only=True)
class ConstraintsConfig:
    """What the student may cost at most; nothing stands for any."""

    parameters: float | None = setting(None, above=0, help="trainable values of the student: 250 k, 1 M")
    flops: float | None = setting(None, above=0, help="of one image forward, a multiply-add is two: 30 M, 1.2 G")
    latency_1: float | None = setting(None, above=0, help="milliseconds of one image forward")
    latency_64: float | None = setting(None, above=0, help="milliseconds of 64 images forward")

    def given(self) -> dict[str, float]:
        """Cost -> the most that is allowed."""
        return {name: most for name in COSTS if (most := getattr(self, name)) is not None}


# -- reading an experiment -----------------------------------------------------------------------------


def listed(given: Any) -> Any:
    """Objectives as a list, accuracy first: a flag may have named them as ``accuracy,parameters``."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")]
    if isinstance(given, (list, tuple)):
        return sorted(given, key=lambda name: name != ACCURACY)  # the others stay as they stand
    return given


def constraints(given: Any, origins: Origins, strict: bool) -> ConstraintsConfig | None:
    """``search.constraints`` of an experiment; ``None`` if nothing is bounded.

    Args:
        given: a mapping, or ``parameters=1M,latency_1=3`` as of a flag.

    Raises:
        ExperimentError: no such cost, or no amount of it.
    """
    prefix = "search.constraints"
    if isinstance(given, str):
        given = _pairs(given, prefix, origins)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        problem = f"must hold costs and what is allowed at most, like parameters: 1 M; costs are {', '.join(COSTS)}"
        raise ExperimentError(problem, key=prefix, value=given, where=origins.of(prefix))
    values = {str(name): _amount(str(name), value, origins) for name, value in given.items()}
    found = build(ConstraintsConfig, values, prefix=prefix, origins=origins, strict=strict)
    return found if found.given() else None


def _pairs(text: str, key: str, origins: Origins) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, sign, most = (word.strip() for word in part.partition("="))
        if not (name and sign and most):
            problem = f"must be like parameters=1M,latency_1=3; costs are {', '.join(COSTS)}"
            raise ExperimentError(problem, key=key, value=text, where=origins.of(key))
        if name in found:
            raise ExperimentError(f"names {name} twice", key=key, value=text, where=origins.of(key))
        found[name] = most
    return found


_LETTERS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def _amount(name: str, value: Any, origins: Origins) -> Any:
    """``1 M``, ``250k``, ``3 ms`` as a number; a number as it is; anything else for the settings to refuse."""
    if not isinstance(value, str) or name not in COSTS:
        return value
    number, unit = r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)", COSTS[name].unit
    found = re.fullmatch(rf"\s*{number}\s*({unit})?\s*" if unit else rf"\s*{number}\s*([kKMGT]?)\s*", value)
    if found is None:
        usual = "milliseconds like 3, 3 ms or 0.8" if unit else "a count like 250 k, 1 M or 1.2 G"
        key = f"search.constraints.{name}"
        raise ExperimentError(f"must be {usual}", key=key, value=value, where=origins.of(key))
    return float(found[1]) * (1.0 if unit else _LETTERS[(found[2] or "").upper()])


def check(search: SearchConfig, origins: Origins) -> None:
    """Refuse objectives that a search cannot have.

    Raises:
        ExperimentError: accuracy is not among them, one is there twice, or the sampler knows one value alone.
    """
    named, key = search.objectives, "search.objectives"
    where = origins.of(key)
    if ACCURACY not in named:
        problem = f"must name {ACCURACY}, which names the winner; beside it {', '.join(COSTS)}"
        raise ExperimentError(problem, key=key, value=list(named), where=where)
    if twice := [name for name in named if named.count(name) > 1]:
        raise ExperimentError(f"names {twice[0]} twice", key=key, value=list(named), where=where)
    if len(named) > 1 and search.sampler in ONE_DIRECTION:
        problem = f"cannot be combined with several objectives ({', '.join(named)}): it looks at one value; use tpe"
        key = "search.sampler"
        raise ExperimentError(problem, key=key, value=search.sampler, where=origins.of(key) or where)


# -- figures -------------------------------------------------------------------------------------------


def told(figures: Mapping[str, float]) -> list[str]:
    """Costs in words: ``77.8 k parameters``, ``1.53 M FLOPs of an image``, ``0.42 ms for one image``."""
    return [
        f"{COSTS[c].shown(v)} {COSTS[c].words.removeprefix('ms ')}" for c in COSTS if (v := figures.get(c)) is not None
    ]


def timed(search: SearchConfig, *, bounded: bool = False) -> list[str]:
    """The costs of an experiment that have to be measured with a clock.

    Args:
        bounded: those with a constraint alone.
    """
    asked = {*(search.constraints.given() if search.constraints else {}), *(() if bounded else search.objectives)}
    return [name for name, cost in COSTS.items() if cost.batch and name in asked]


def broken(search: SearchConfig, figures: Mapping[str, float]) -> list[str]:
    """In words, which constraints an architecture of these costs breaks; one that is not known breaks none.

    Args:
        figures: cost -> figure.
    """
    bounded = search.constraints.given() if search.constraints else {}
    return [
        f"{figures[name]:,.4g} {COSTS[name].words}, at most {most:,.4g} are allowed"
        if COSTS[name].unit
        else f"{figures[name]:,.0f} {COSTS[name].words}, at most {most:,.0f} are allowed"
        for name, most in bounded.items()
        if name in figures and figures[name] > most
    ]


def figures_of(results: Mapping[str, float]) -> dict[str, float]:
    """The costs among a run's results: cost -> figure."""
    return {name: results[cost.metric] for name, cost in COSTS.items() if cost.metric in results}


def as_results(figures: Mapping[str, float]) -> dict[str, float]:
    """Costs as a run's results and MLflow call them."""
    return {COSTS[name].metric: float(value) for name, value in figures.items()}


def values_of(objectives: Sequence[str], accuracy: float, figures: Mapping[str, float]) -> list[float]:
    """The values of a finished trial, in the order of the objectives.

    Raises:
        KeyError: a cost is not known.
    """
    return [accuracy if name == ACCURACY else figures[name] for name in objectives]


def directions(objectives: Sequence[str]) -> list[Literal["maximize", "minimize"]]:
    """Optuna's direction of each objective."""
    return ["maximize" if name == ACCURACY else "minimize" for name in objectives]


# -- the front -----------------------------------------------------------------------------------------


def front(points: Mapping[int, Sequence[float]], objectives: Sequence[str]) -> list[int]:
    """Numbers of the trials that no other one dominates: is nowhere worse than, and somewhere better.

    Args:
        points: number -> values, in the order of the objectives.

    Returns:
        By accuracy, the most accurate first; equal trials stand beside each other, all of them.
    """
    signs = [-1.0 if way == "maximize" else 1.0 for way in directions(objectives)]
    losses = {n: tuple(s * v for s, v in zip(signs, values, strict=True)) for n, values in points.items()}
    kept: list[int] = []
    # Whatever dominates a trial comes before it in this order, so those kept so far are all there is to look at.
    for number in sorted(losses, key=lambda n: (losses[n], n)):
        mine = losses[number]
        if not any(_dominates(losses[other], mine) for other in kept):
            kept.append(number)
    return kept


def _dominates(a: Iterable[float], b: Iterable[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
