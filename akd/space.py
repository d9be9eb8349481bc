"""The search space: parsed and checked before anything starts, then a picklable callable for Optuna.

    train.lr:           {type: float, low: 0.01, high: 0.2, log: true}
    train.batch_size:   {type: int, low: 32, high: 128, step: 32}
    train.nesterov:     {choices: [true, false]}
    method.host.weight: {type: float, low: 0.5, high: 12, when: {method.host.name: [kd]}}
    train.momentum:     0.9                      # or {value: 0.9}: fixed

Calling a :class:`Space` with an Optuna trial gives the sampled values; ``when`` makes a parameter conditional on
others, so the space is define-by-run and its order is resolved here.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from akd.errors import ExperimentError, near

if TYPE_CHECKING:
    import optuna

    from akd.config import Experiment

_FIELDS = {"type", "low", "high", "log", "step", "choices", "value", "when"}


@dataclass(frozen=True)
class Parameter:
    """One searched key.

    Attributes:
        key: dotted key of the experiment.
        kind: ``int``, ``float``, ``choice`` or ``fixed``.
        low, high, step, log: of a number.
        choices: of a choice; the single value if fixed.
        when: other key -> values under which this one exists.
    """

    key: str
    kind: str
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def exists(self, values: Mapping[str, Any]) -> bool:
        """True if its conditions hold among the values known so far."""
        return all(key in values and values[key] in allowed for key, allowed in self.when)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        """A value from an Optuna trial."""
        if self.kind == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        if self.kind == "float":
            return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        if self.kind == "choice":
            # Optuna keeps plain scalars only; lists travel by position.
            if self.scalars:
                return trial.suggest_categorical(self.key, self.choices)
            return self.choices[trial.suggest_categorical(self.key, tuple(range(len(self.choices))))]
        return self.choices[0]

    @property
    def scalars(self) -> bool:
        """True if Optuna can hold its choices as they are."""
        return all(isinstance(c, (str, int, float, bool, type(None))) for c in self.choices)

    def told(self, value: Any) -> Any:
        """What Optuna holds for a value."""
        return value if self.kind != "choice" or self.scalars else self.choices.index(value)

    def takes(self, value: Any) -> bool:
        """True if it can have this value (of a float range: any between its ends)."""
        if self.kind in ("choice", "fixed"):
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (self.kind == "float" or value == int(value))

    def all_values(self) -> Iterable[Any]:
        """Every value; of a range of numbers that has no end of them, the :meth:`extremes`."""
        if self.kind == "int":
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.kind == "float" and self.step:
            return (self.at_step(k) for k in range(int((self.high - self.low) / self.step + 1e-9) + 1))
        return self.extremes()

    def at_step(self, k: int) -> float:
        """The value ``k`` steps from the lowest, as a person writes it: 0.7, not the 0.7000000000000001 of the sum."""
        return float(f"{self.low + k * (self.step or 1):.12g}")

    def extremes(self) -> tuple[Any, ...]:
        """Values that show whether the whole range is allowed."""
        if self.kind in ("choice", "fixed"):
            return self.choices
        if self.kind == "int":
            return (int(self.low), int(self.high))
        # One from within as well: both ends may be whole numbers where only those are allowed.
        within = () if self.step or self.low == self.high else (self.low + 0.381966 * (self.high - self.low),)
        return (self.low, self.high, *within)

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        if self.kind in ("choice", "fixed"):
            return generator.choice(self.choices)
        if self.step:
            value = self.low + self.step * generator.randint(0, int((self.high - self.low) / self.step + 1e-9))
        elif self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == "int" else value


@dataclass(frozen=True)
class Space:
    """Searched parameters, every condition after what it depends on."""

    parameters: tuple[Parameter, ...]

    def __call__(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Sampled and fixed values of the parameters that exist in this trial, dotted key -> value."""
        values: dict[str, Any] = {}
        for p in self.parameters:
            if p.exists(values):
                values[p.key] = p.suggest(trial)
        return values

    def told(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna holds for a configuration: the searched values, as :meth:`__call__` would have drawn them."""
        return {p.key: p.told(values[p.key]) for p in self.parameters if p.kind != "fixed" and p.key in values}

    @property
    def searched(self) -> list[Parameter]:
        """The parameters that vary."""
        return [p for p in self.parameters if p.kind != "fixed"]

    def around(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A whole configuration with the values of ``told``: their conditions met, all others at their first values."""
        values = {key: allowed[0] for key, allowed in self._conditions(told).items() if allowed}
        values |= told
        for p in self.parameters:  # what these bring with them: a step schedule its decay epochs
            if p.key not in values and p.exists(values):
                values[p.key] = p.extremes()[0]
        return values

    def draw(self, told: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
        """Like :meth:`around`, all others at random; a key of ``told`` that does not exist beside them is left out."""
        conditions = self._conditions(told)
        values: dict[str, Any] = {}
        for p in self.parameters:
            if not p.exists(values):
                continue
            if p.key in told:
                values[p.key] = told[p.key]
            else:
                values[p.key] = generator.choice(conditions[p.key]) if conditions.get(p.key) else p.draw(generator)
        return values

    def _conditions(self, told: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Values under which the parameters of ``told`` can exist, in the order of their conditions."""
        by_key = {p.key: p for p in self.parameters}
        found: dict[str, list[Any]] = {}
        waiting = list(told)
        while waiting:
            for key, allowed in by_key[waiting.pop(0)].when:
                found[key] = [v for v in found.get(key, allowed) if v in allowed]
                waiting.append(key)
        return {key: values for key, values in found.items() if key not in told}


def parse(experiment: Experiment) -> Space:
    """The space of an experiment, checked against its keys and their ranges.

    Raises:
        ExperimentError: malformed entry, low > high, log from 0 or below, a condition on an unknown parameter or in a
            circle, a key the experiment does not have, a value its setting does not allow, nothing to search.
    """
    for key in experiment.space:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(key)):
            raise _error("is no dotted key, like train.lr", str(key), experiment)
    parameters = {str(key): _parameter(str(key), spec, experiment) for key, spec in experiment.space.items()}
    order: list[Parameter] = []
    placed: set[str] = set()
    for parameter in parameters.values():
        for key, values in parameter.when:
            if key not in parameters:
                raise _error(
                    f"depends on {key}, which the space does not search{near(key, parameters)}",
                    parameter.key,
                    experiment,
                )
            other = parameters[key]
            if other.kind == "float":
                problem = f"{key} is a range of numbers, which a condition cannot name; give it choices"
                raise _error(problem, parameter.key, experiment, f"when.{key}", list(values))
    while len(order) < len(parameters):
        ready = [p for p in parameters.values() if p.key not in placed and all(key in placed for key, _ in p.when)]
        if not ready:
            circle = next(p.key for p in parameters.values() if p.key not in placed)
            raise _error("its conditions go in a circle", circle, experiment)
        order += ready
        placed |= {p.key for p in ready}
    space = Space(tuple(order))
    _check_conditions(space, experiment)
    _check_values(space, experiment)
    return space


def _check_conditions(space: Space, experiment: Experiment) -> None:
    """Refuse a condition on a value that its parameter never has."""
    by_key = {p.key: p for p in space.parameters}
    for parameter in space.parameters:
        for key, values in parameter.when:
            other = by_key[key]
            never = [v for v in values if not other.takes(v)]
            if not never and values:
                continue
            _check_names(space, experiment, other)  # the choice may be what is misspelt
            value, taken = never[0] if never else [], ", ".join(map(str, other.choices))
            is_ = f"one of {taken}" if taken else f"a whole number from {other.low} to {other.high}"
            hint = f"{near(value, map(str, other.choices))}; it is {is_}"
            raise _error(f"{key} never has this value{hint}", parameter.key, experiment, f"when.{key}", value)


def _check_names(space: Space, experiment: Experiment, parameter: Parameter) -> None:
    """Refuse a choice of a parameter that its own key does not know."""
    for value in parameter.extremes():
        try:
            experiment.with_values(space.around({parameter.key: value}))
        except ExperimentError as error:
            if error.key == parameter.key or _named(error, parameter.key, value):
                raise _of_value(error.problem, parameter, value, experiment) from None


def _error(
    problem: str, key: str, experiment: Experiment, field: str = "", value: Any = ExperimentError._NOTHING
) -> ExperimentError:
    """A mistake in the entry of ``key``, with its place."""
    full = f"space.{key}" + (f".{field}" if field else "")
    return ExperimentError(problem, key=full, value=value, where=experiment.origins.of(full))


def _of_value(problem: str, parameter: Parameter, value: Any, experiment: Experiment) -> ExperimentError:
    """A value that a key refuses, at what brings it in: an end of a range, its type, a list of choices."""
    ends = {parameter.low: "low", parameter.high: "high"} if parameter.kind in ("int", "float") else {}
    if ends and value in ends:
        return _error(problem, parameter.key, experiment, ends[value], value)
    if ends:  # from within: the ends are whole numbers, and only those are allowed
        return _error(problem, parameter.key, experiment, "type", parameter.kind)
    key = f"space.{parameter.key}"
    where = experiment.origins.of(f"{key}.choices")
    return ExperimentError(problem, key=key, value=value, where=where)


def _named(error: ExperimentError, key: str, value: Any) -> bool:
    """True if a name that ``key`` chooses is refused as such: ``method.views`` for ``method.views.name``."""
    return error.key is not None and key == f"{error.key}.name" and error.value == value


def _parameter(key: str, spec: Any, experiment: Experiment) -> Parameter:
    if not isinstance(spec, Mapping):
        return Parameter(key, "fixed", choices=(spec,))
    for field in spec:
        if field not in _FIELDS:
            raise _error(
                f"unknown key{near(field, _FIELDS) or ', allowed are ' + ', '.join(sorted(_FIELDS))}",
                key,
                experiment,
                str(field),
            )
    when = _when(key, spec.get("when"), experiment)
    if "value" in spec:
        _only(key, spec, {"value", "when"}, experiment)
        return Parameter(key, "fixed", choices=(spec["value"],), when=when)
    if "choices" in spec:
        _only(key, spec, {"choices", "type", "when"}, experiment)
        choices = spec["choices"]
        if not isinstance(choices, list) or not choices:
            raise _error("must be a list with at least one value", key, experiment, "choices", choices)
        if any(choices.count(c) > 1 for c in choices):
            raise _error("names a value twice", key, experiment, "choices", choices)
        return Parameter(key, "choice", choices=tuple(choices), when=when)
    kind = spec.get("type")
    if kind not in ("int", "float"):
        raise _error("must be int or float (or give choices or value instead)", key, experiment, "type", kind)
    return _number(key, kind, spec, when, experiment)


def _number(key: str, kind: str, spec: Mapping[str, Any], when: Any, experiment: Experiment) -> Parameter:
    wanted = (int,) if kind == "int" else (int, float)
    for name in ("low", "high", "step"):
        value = spec.get(name)
        if value is None and name == "step":
            continue
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _error(f"must be a {'whole ' if kind == 'int' else ''}number", key, experiment, name, value)
        if not math.isfinite(value):
            raise _error("must be a finite number", key, experiment, name, value)
    low, high, step, log = spec["low"], spec["high"], spec.get("step"), spec.get("log", False)
    if not isinstance(log, bool):
        raise _error("must be true or false", key, experiment, "log", log)
    if low > high:
        raise _error(f"must be at most high, which is {high}", key, experiment, "low", low)
    if log and low <= 0:
        raise _error("must be above 0 for a logarithmic range", key, experiment, "low", low)
    if step is not None and step <= 0:
        raise _error("must be above 0", key, experiment, "step", step)
    if step is not None and step > high - low:
        raise _error(f"must be at most high - low, which is {high - low:g}", key, experiment, "step", step)
    if step is not None and log:
        raise _error("cannot go with log: true", key, experiment, "step", step)
    return Parameter(key, kind, low, high, step, log, when=when)


def _only(key: str, spec: Mapping[str, Any], fields: set[str], experiment: Experiment) -> None:
    for field in spec:
        if field not in fields:
            raise _error(
                f"has no effect beside {'value' if 'value' in spec else 'choices'}", key, experiment, str(field)
            )


def _when(key: str, when: Any, experiment: Experiment) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if when is None:
        return ()
    if not isinstance(when, Mapping) or not when:
        raise _error("must hold keys and lists of values", key, experiment, "when", when)
    return tuple((str(k), tuple(v) if isinstance(v, list) else (v,)) for k, v in when.items())


def _check_values(space: Space, experiment: Experiment) -> None:
    """Put the ends of every range into the experiment, conditions met, and see what it says."""
    if not space.searched:
        where = experiment.origins.of("space") or experiment.origins.file
        problem = "nothing to search: give at least one range or list of choices"
        raise ExperimentError(problem, key="space", where=where)
    together: ExperimentError | None = None
    for p in space.parameters:
        if p.key.split(".")[0] in ("search", "space", "data"):
            raise _error("cannot be searched: it is the same for every trial of a study", p.key, experiment)
        if p.key.startswith("teacher") or p.key in ("train.seed", "train.plan_seed", "train.threads"):
            raise _error("cannot be searched: every trial of a study shares it", p.key, experiment)
        if p.key == "train.epochs":
            problem = "cannot be searched: rungs and ranking count in epochs; train.epoch_factor stretches them"
            raise _error(problem, p.key, experiment)
        for value in p.extremes():
            values = space.around({p.key: value})
            context = {key: other for key, other in values.items() if key != p.key}
            try:
                experiment.with_values(values)
            except ExperimentError as error:
                if error.key == p.key and error.problem.startswith("unknown key"):
                    raise _error(error.problem, p.key, experiment) from None
                if error.key == p.key or _named(error, p.key, value):
                    raise _of_value(error.problem, p, value, experiment) from None
                if (blamed := _blamed(error.key, p.key, context)) is not None:
                    # Its own turn may say more; if not, it is the two together.
                    problem = f"{error.problem}, when {p.key} is {value!r}; a 'when' can keep them apart"
                    together = together or _error(problem, blamed, experiment)
                    continue
                if error.key and error.key.startswith(p.key + "."):
                    raise _error(error.problem, p.key, experiment) from None
                plain = ExperimentError(error.problem, key=error.key, value=error.value)
                raise _error(str(plain), p.key, experiment) from None
    if together:
        raise together
    _check_parts(space, experiment)


def variants(space: Space, experiment: Experiment) -> Iterator[Experiment]:
    """The experiment with every parameter in turn at the ends of its range, or each of its choices."""
    for p in space.parameters:
        for value in p.extremes():
            try:
                yield experiment.with_values(space.around({p.key: value}))
            except ExperimentError:  # a choice that another parameter's condition keeps away
                continue


def combinations(space: Space, prefix: str) -> Iterator[dict[str, Any]]:
    """Values of the parameters whose keys begin with ``prefix``, and of what their existence depends on, in every
    combination that can be drawn; one without values where there is no such parameter."""
    wanted = {p.key for p in space.parameters if p.key.startswith(prefix)}
    while more := {key for p in space.parameters if p.key in wanted for key, _ in p.when} - wanted:
        wanted |= more
    yield from _combined([p for p in space.parameters if p.key in wanted], {})


def _combined(parameters: list[Parameter], values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if not parameters:
        yield dict(values)
        return
    first, *rest = parameters
    if not first.exists(values):
        yield from _combined(rest, values)
        return
    for value in first.all_values():
        yield from _combined(rest, {**values, first.key: value})


def _check_parts(space: Space, experiment: Experiment) -> None:
    """Parts of a batch and a method that compares its images may each be right and yet not go together."""
    parts = next((p for p in space.parameters if p.key == "train.micro_batch"), None)
    if parts is None:
        return
    for p in (p for p in space.parameters if p.key.startswith("method.")):
        for value, most in itertools.product(p.extremes(), parts.extremes()):
            values = space.around({p.key: value, parts.key: most})
            if not (p.exists(values) and parts.exists(values)):
                continue
            try:
                experiment.with_values(values)
            except ExperimentError as error:
                if error.key == parts.key:
                    problem = f"{most!r} {error.problem}, when {p.key} is {value!r}; a 'when' can keep them apart"
                    raise _error(problem, parts.key, experiment) from None


def _blamed(key: str | None, tried: str, context: Mapping[str, Any]) -> str | None:
    """The other parameter that a refused key belongs to: itself, or one beside it (a margin without its views)."""
    if key is None or key in context:
        return key
    section = key.rpartition(".")[0]
    if not section or tried.startswith(f"{section}."):
        return None
    return next((other for other in context if other.startswith(f"{section}.")), None)
