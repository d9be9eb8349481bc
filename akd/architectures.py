"""The students a search may train: which they are, what they cost, and which of them the constraints allow.

A constraint speaks of the architecture alone, so it is settled before the search: a student that breaks one is taken
out of the choices of ``student.name``, with all that depends on it. The sampler never sees it, nothing is trained in
vain, and every trial (so the winner) obeys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from akd import costs, objectives
from akd.config import Experiment
from akd.errors import ExperimentError, many
from akd.objectives import COSTS
from akd.space import Parameter, Space, combinations

if TYPE_CHECKING:
    from akd.prepare import Prepared

KEY = "student.name"
#: Combinations of settings of the student that are looked at.
MOST = 1000


def students(space: Space, experiment: Experiment) -> dict[str, Experiment]:
    """Name -> an experiment with that student, of all that the space can draw; else the experiment's own."""
    found: dict[str, Experiment] = {}
    for values in itertools.islice(combinations(space, "student."), MOST):
        try:
            drawn = experiment.with_values(values)
        except ExperimentError:  # taps of one network beside another, which never meet
            continue
        found.setdefault(drawn.student.name, drawn)
    return found or {experiment.student.name: experiment}


def title(experiment: Experiment) -> str:
    """The students of an experiment in a few words, for whoever has not parsed its space: ``resnet8, resnet14``."""
    entry = experiment.space.get(KEY)
    names = entry.get("choices", [entry.get("value")]) if isinstance(entry, Mapping) else [entry]
    named = [str(name) for name in names if isinstance(name, str)] if entry is not None else []
    if not named:
        return experiment.student.name
    return ", ".join(named) if len(named) <= 3 else many(len(named), "student")


def shown_in(experiment: Experiment, allowed: Iterable[str]) -> str:
    """The student of runs that stand beside the search: the experiment's own if a trial may have it, else the first."""
    names = list(allowed)
    return experiment.student.name if experiment.student.name in names or not names else names[0]


# -- before a search -----------------------------------------------------------------------------------


def priced(ready: Prepared, known: costs.Table | None = None) -> Prepared:
    """A prepared experiment with parameters and FLOPs of all its students, and those that cost too much left out.

    Args:
        known: what the study's folder holds already.

    Raises:
        ExperimentError: see :func:`limited`; objectives that the space does not vary; FLOPs that cannot be counted.
    """
    experiment, search = ready.experiment, ready.experiment.search
    made_for, every = costs.Input.of(ready.data), students(ready.space, experiment)
    if len(every) == 1 and len(search.objectives) > 1:
        (name,) = every
        problem = f"have no effect beside accuracy: every trial has the same student, {name}; search {KEY}"
        key = "search.objectives"
        raise ExperimentError(problem, key=key, value=list(search.objectives), where=experiment.origins.of(key))
    table = costs.merged(known or {}, costs.counted(every, made_for))
    bounded = search.constraints.given() if search.constraints else {}
    if ("flops" in search.objectives or "flops" in bounded) and (unknown := costs.lacking(table, every, ["flops"])):
        problem = f"of {unknown[0]} cannot be counted: torch cannot look into this network"
        key = "search.constraints.flops" if "flops" in bounded else "search.objectives"
        raise ExperimentError(problem, key=key, value="flops", where=experiment.origins.of(key))
    return limited(replace(ready, costs=table))


#: Measures latencies: students by name, what they are made for, which costs -> the table.
Clock = Callable[[Mapping[str, Experiment], costs.Input, Sequence[str]], costs.Table]


def clocked(ready: Prepared, clock: Clock = costs.clocked) -> Prepared:
    """A :func:`priced` experiment with the latencies that are asked for, where they are not known yet.

    Raises:
        ExperimentError: see :func:`limited`.
    """
    missing, every = untimed(ready), students(ready.space, ready.experiment)
    if not missing:
        return ready
    wanted = objectives.timed(ready.experiment.search)
    found = clock({name: every[name] for name in missing}, costs.Input.of(ready.data), wanted)
    return limited(replace(ready, costs=costs.merged(ready.costs, found)))


def untimed(ready: Prepared) -> list[str]:
    """Students whose latencies are asked for and not known."""
    wanted = objectives.timed(ready.experiment.search)
    return costs.lacking(ready.costs, students(ready.space, ready.experiment), wanted)


def limited(ready: Prepared) -> Prepared:
    """A prepared experiment without the students whose costs, as far as they are known, break a constraint.

    Raises:
        ExperimentError: none is left; names the smallest. Or one that cannot be taken out.
    """
    space, left_out = within(ready.space, ready.experiment, ready.costs)
    left = {**ready.left_out, **left_out}
    name = shown_in(ready.experiment, students(space, ready.experiment))
    controls = {k: replace(e, student=replace(e.student, name=name)) for k, e in ready.controls.items()}
    if name == ready.experiment.student.name:
        controls = ready.controls
    return replace(ready, space=space, left_out=left, controls=controls)


def within(space: Space, experiment: Experiment, table: costs.Table) -> tuple[Space, dict[str, str]]:
    """The space without students that break a constraint, and why each of these does.

    Raises:
        ExperimentError: see :func:`limited`.
    """
    every = students(space, experiment)
    broken = {name: words for name in every if (words := objectives.broken(experiment.search, table.get(name, {})))}
    if not broken:
        return space, {}
    rest = [name for name in every if name not in broken]
    chosen = next((p for p in space.parameters if p.key == KEY and p.kind == "choice"), None)
    fixed = [name for name in broken if chosen is None or name not in chosen.choices]
    if not rest or fixed:
        raise _nothing_left(experiment, table, broken, fixed if rest else [])
    return restricted(space, KEY, [c for c in (chosen.choices if chosen else ()) if c not in broken]), {
        name: "; ".join(words) for name, words in broken.items()
    }


def _nothing_left(
    experiment: Experiment, table: costs.Table, broken: Mapping[str, list[str]], fixed: list[str]
) -> ExperimentError:
    """The mistake of constraints that leave nothing to train; ``fixed``: what the space does not choose."""
    bounded = experiment.search.constraints.given() if experiment.search.constraints else {}
    blamed = fixed or list(broken)
    over = [c for c, most in bounded.items() if any(table[s].get(c, 0.0) > most for s in blamed)]
    cost = next((c for c in over if all(table[s].get(c, 0.0) > bounded[c] for s in blamed)), over[0])
    least = min(blamed, key=lambda s: table[s].get(cost, math.inf))
    told = f"{least} costs {'; '.join(broken[least])}"
    if fixed:
        problem = f"{told}, and is not among the choices of space.{KEY}, which could leave it out"
    else:
        problem = told if len(broken) == 1 else f"it leaves no student of the space; the smallest, {told}"
    key = f"search.constraints.{cost}"
    return ExperimentError(problem, key=key, value=COSTS[cost].shown(bounded[cost]), where=experiment.origins.of(key))


def restricted(space: Space, key: str, choices: Iterable[str]) -> Space:
    """The space with fewer choices for ``key``, without what can then no longer exist."""
    left: dict[str, Parameter] = {}
    possible = {key: tuple(choices)}
    for p in space.parameters:  # every condition stands after what it depends on
        p = replace(p, choices=possible[key]) if p.key == key else p
        when = tuple((k, tuple(v for v in vs if k not in possible or v in possible[k])) for k, vs in p.when)
        if all(vs and k in left for k, vs in when):
            left[p.key] = replace(p, when=when)
    return Space(tuple(left.values()))


def of_study(study: Path, space: Space, experiment: Experiment) -> tuple[Space, costs.Table, dict[str, str]]:
    """What a study that was started searches, the costs its folder holds, and which students were left out and why."""
    table = costs.kept(study)
    left, left_out = within(space, experiment, table)
    return left, table, left_out


def words(ready: Prepared, *, always: bool = False) -> Iterator[str]:
    """What is said before a search: the students with their costs, where there is a choice or a question of cost.

    Args:
        always: also where there is neither.
    """
    search, names = ready.experiment.search, list(students(ready.space, ready.experiment))
    asked = len(search.objectives) > 1 or search.constraints is not None
    if len(names) == 1 and not asked and not always:
        return
    for name in names:
        yield f"student {name}: {', '.join(objectives.told(ready.costs.get(name, {})))}"
    for name, why in ready.left_out.items():
        yield f"left out: {name} costs {why}"
