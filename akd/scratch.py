"""One trial beside a study, for a sampler to fill in: it sees the study's trials as they are and writes nothing.

A suggestion drawn straight into a journal would be written value by value, and a copy of the study to draw it in costs
more with every trial that is in it.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial


def scratch_trial(
    past: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    sampler: optuna.samplers.BaseSampler,
    fixed: Mapping[str, Any] | None = None,
) -> optuna.Trial:
    """The next trial after ``past``, whose values ``sampler`` will draw when they are asked for.

    Args:
        past: all trials of the study, by number; they are only read.
        directions: of the study.
        fixed: values that are not drawn, as Optuna holds them.

    With several directions stopped trials come without their curves: Optuna's TPE would order them by their last value
    and asks the study for its only direction. So they count as the least of all trials, behind every finished one.
    """
    if len(directions) > 1:
        past = [_without_curve(trial) if trial.state == TrialState.PRUNED else trial for trial in past]
    study = optuna.Study("scratch", _Beside(past, directions, fixed or {}), sampler)
    return optuna.Trial(study, len(past))


def _without_curve(trial: FrozenTrial) -> FrozenTrial:
    bare = copy.copy(trial)
    bare.intermediate_values = {}
    return bare


class _Beside(BaseStorage):
    """Storage of trials that are fixed and one that is not; ids are numbers."""

    def __init__(self, past: Sequence[FrozenTrial], directions: Sequence[StudyDirection], fixed: Mapping[str, Any]):
        self._directions = list(directions)
        # Where Optuna itself keeps the values of an enqueued trial.
        self._own = create_trial(state=TrialState.RUNNING, system_attrs={"fixed_params": dict(fixed)})
        self._own.number = self._own._trial_id = len(past)
        self._all = [*past, self._own]

    # -- the study ---------------------------------------------------------------------------------

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return "scratch"

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    # -- trials ------------------------------------------------------------------------------------

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._all[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [t for t in self._all if t.state in states] if states is not None else list(self._all)
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        own = self._mine(trial_id)
        own.params[param_name] = distribution.to_external_repr(param_value_internal)
        own.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._mine(trial_id).system_attrs[key] = value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._mine(trial_id).user_attrs[key] = value

    def _mine(self, trial_id: int) -> FrozenTrial:
        if trial_id != self._own._trial_id:
            self._refuse()
        return self._own

    # -- what no sampler does ----------------------------------------------------------------------

    def _refuse(self, *args: Any, **kw: Any) -> NoReturn:
        raise RuntimeError("a scratch trial's study cannot be changed")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = get_all_studies = _refuse
    create_new_trial = set_trial_state_values = set_trial_intermediate_value = _refuse
