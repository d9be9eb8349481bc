"""Every form a method can take in a search, built before the search starts.

A setting may be right by itself and yet never work with these networks: a stage that one of them does not have, more
views than features, a host that cannot stand beside another. What is always refused is a mistake in the space and is
told as one; what fails beside some values of other parameters alone is a trial that fails, with its reason.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from akd.config import Experiment
from akd.data import TrainData
from akd.data.policies import create_policy
from akd.errors import ExperimentError, reason
from akd.fit import build_student, shapes_of
from akd.methods import MethodConfig, Shapes, create_method
from akd.space import Parameter, Space
from akd.teacher import LiveTeacher

#: Most configurations that are looked at, and most that are tried to find one in which a value works.
MOST, TRIES = 2000, 64


class Builder:
    """Builds methods for the networks of an experiment, each of which is made once.

    Args:
        student, teacher: of the experiment as it stands; a space may name other students.
    """

    def __init__(self, experiment: Experiment, data: TrainData, student: nn.Module, teacher: nn.Module):
        self.data, self.teacher = data, teacher
        self._students: dict[Any, nn.Module] = {experiment.student: student}
        self._widths: dict[Any, Shapes] = {}
        self._seen: dict[str, ExperimentError | None] = {}
        self._image = torch.zeros(1, data.dataset.channels, *data.dataset.size)
        self._preact = False

    def build(self, experiment: Experiment, *, real: bool = True) -> None:
        """Build the method of an experiment: its stages must be there, its settings must fit.

        Args:
            real: with weights; else without, as far as the method can be built so, which takes no memory and no time.

        Raises:
            ExperimentError: they do not.
        """
        method = experiment.method
        create_policy(method.augment, self.data)
        shapes = self._shapes(experiment)
        self._check_preact(experiment)
        smoothing = experiment.train.label_smoothing
        if not real and _built_without_weights(method, shapes, smoothing):
            return
        try:
            create_method(method, shapes, label_smoothing=smoothing)
        except ExperimentError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise ExperimentError(f"cannot be built: {reason(error)}", key="method", value=method.title) from None

    def mistake(self, experiment: Experiment) -> ExperimentError | None:
        """Why a method cannot be built, without weights; ``None`` if it can."""
        form = repr((experiment.student, experiment.method))
        if form not in self._seen:
            self._seen[form] = None
            try:
                self.build(experiment, real=False)
            except ExperimentError as error:
                self._seen[form] = error
        return self._seen[form]

    def _shapes(self, experiment: Experiment) -> Shapes:
        student, needs = experiment.student, bool(experiment.method.needs)
        if (student, needs) not in self._widths:
            source = LiveTeacher(self.teacher) if needs else None
            # One image: what a method keeps of every image is not needed here.
            found = shapes_of(self._student(experiment), self._image, source, len(self.data.dataset.classes), images=1)
            self._widths[student, needs] = found
        return self._widths[student, needs]

    def _student(self, experiment: Experiment) -> nn.Module:
        if experiment.student not in self._students:
            try:
                self._students[experiment.student] = build_student(experiment, self.data)
            except (ExperimentError, TypeError, ValueError) as error:
                problem = error.problem if isinstance(error, ExperimentError) else str(error)
                raise ExperimentError(problem, key="student.name", value=experiment.student.name) from None
        return self._students[experiment.student]

    def _check_preact(self, experiment: Experiment) -> None:
        """Refuse a teacher that has no maps before its ReLUs to a method that asks for them."""
        needed = any(need.startswith("maps_preact") for need in experiment.method.needs)
        if self._preact or not needed:
            return
        try:
            with torch.no_grad():
                self.teacher(self._image, preact=True)
        except ExperimentError as error:
            origins, name = experiment.origins, experiment.teacher.name
            where = origins.of("teacher.name") or origins.of("teacher")
            raise ExperimentError(error.problem, key="teacher", value=name, where=where) from None
        self._preact = True


def _built_without_weights(method: MethodConfig, shapes: Shapes, label_smoothing: float) -> bool:
    """Build a method on no device; false if it needs one, which need not be a mistake.

    Raises:
        ExperimentError: the method refuses its settings.
    """
    try:
        with torch.device("meta"):
            create_method(method, shapes, label_smoothing=label_smoothing)
    except ExperimentError:
        raise
    except Exception:  # a method of another package may look at its weights
        return False
    return True


def check(space: Space, experiment: Experiment, builder: Builder) -> None:
    """Refuse a space with a value that no method can be built with.

    Looked at are each choice and both ends of each range, the other parameters at their first values, and each pair of
    names (of host, views, augmentation, extra hosts). A value is refused only if no other configuration that has it
    can be built either: each other parameter is varied in turn, then all at random. Values within a range are not
    looked at, nor more than :data:`MOST` configurations.

    Raises:
        ExperimentError: names the place, the key, the value and the reason.
    """
    forms = _Forms(space, experiment, builder)
    refused = [(told, error) for told in _singles(space) if (error := forms.refusal(told))]
    for told, error in refused:  # a value that is to blame itself, before one that only meets it
        if error.key in told:
            raise _blame(experiment, error.key, told, error)
    for told, error in refused:
        raise _blame(experiment, next(iter(told)), told, error)
    for told in _pairs(space):
        if error := forms.refusal(told):
            raise _blame(experiment, error.key if error.key in told else [*told][-1], told, error)


class _Forms:
    """What a space can draw, as far as it decides what is built."""

    def __init__(self, space: Space, experiment: Experiment, builder: Builder):
        self.space, self.experiment, self.builder = space, experiment, builder
        self.varied = [p for p in space.parameters if _of_method(p)]
        self.count = 0

    def refusal(self, told: Mapping[str, Any]) -> ExperimentError | None:
        """Why nothing can be built with these values; ``None`` if something can, or if they never meet."""
        first = self._mistake(self.space.around(told), told)
        if first is None or any(self._mistake(v, told) is None for v in self._others(told) if told.keys() <= v.keys()):
            return None
        return first

    def _mistake(self, values: dict[str, Any], told: Mapping[str, Any]) -> ExperimentError | None:
        by_key = {p.key: p for p in self.varied}
        if self.count >= MOST or not all(by_key[key].exists(values) for key in told):
            return None
        self.count += 1
        try:
            full = self.experiment.with_values(values)
        except ExperimentError as error:
            return error
        return self.builder.mistake(full)

    def _others(self, told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for p in self.varied:
            if p.key not in told:
                yield from (self.space.around({**told, p.key: value}) for value in p.extremes()[1:])
        draws = random.Random(0)
        yield from (self.space.draw(told, draws) for _ in range(TRIES))


def _of_method(parameter: Parameter) -> bool:
    return parameter.key.split(".")[0] in ("method", "student")


def _singles(space: Space) -> Iterator[dict[str, Any]]:
    for p in space.parameters:
        if _of_method(p):
            yield from ({p.key: value} for value in p.extremes())


def _pairs(space: Space) -> Iterator[dict[str, Any]]:
    names = [p for p in space.parameters if _of_method(p) and p.key.endswith(".name") and p.kind == "choice"]
    for one, other in itertools.combinations(names, 2):
        yield from ({one.key: v, other.key: w} for v, w in itertools.product(one.choices, other.choices))


def _blame(experiment: Experiment, key: str, told: Mapping[str, Any], error: ExperimentError) -> ExperimentError:
    """The mistake as one of the space: of ``key``, beside the other values of ``told``."""
    own = error.key == key or error.value == told[key]
    problem = error.problem if own else str(ExperimentError(error.problem, key=error.key, value=error.value))
    others = " and ".join(f"{other} is {value!r}" for other, value in told.items() if other != key)
    problem += f", when {others}; a 'when' can keep them apart" if others else ""
    place = f"space.{key}"
    return ExperimentError(problem, key=place, value=told[key], where=experiment.origins.of(place))
