"""The parts of samplers: unit cube, Sobol points, grid, generations; against Optuna's and plain references."""

from __future__ import annotations

import math
import statistics
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from akd.config import Experiment, resolve
from akd.evolution import StudyCMA, StudyNSGA2
from akd.grid import cells, count, next_cell
from akd.samplers import make_sampler
from akd.scratch import scratch_trial
from akd.space import Parameter, Space, parse
from akd.whole import QMC, distribution, from_unit, to_unit

NUMBERS = {
    "train.lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "method.host.weight": {"type": "float", "low": 0.0, "high": 10.0},
    "train.batch_size": {"type": "int", "low": 8, "high": 64, "step": 8},
}
MIXED = NUMBERS | {
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.decay_epochs": {"choices": [[1], [1, 2], [2]], "when": {"train.schedule": ["step"]}},
}


def experiment(space: dict[str, Any], **search: Any) -> Experiment:
    return resolve({"train": {"epochs": 3}, "search": {"trials": 60, "scheduler": "none", **search}, "space": space})


numbers = st.sampled_from(
    [
        Parameter("x", "float", 0.001, 1.0, log=True),
        Parameter("x", "float", -2.0, 3.0),
        Parameter("x", "float", 0.1, 0.75, step=0.1),
        Parameter("x", "int", 1, 64, log=True),
        Parameter("x", "int", 3, 3),
        Parameter("x", "int", 2, 31, step=4),
    ]
)


class TestUnit:
    @settings(max_examples=300, deadline=None)
    @given(numbers, st.floats(0, 1))
    def test_every_place_is_a_value_that_optuna_takes_and_finds_its_way_back(self, p: Parameter, u: float) -> None:
        value = from_unit(p, u)
        told = distribution(p)
        assert told._contains(told.to_internal_repr(value))
        assert p.low <= value <= p.high
        assert from_unit(p, to_unit(p, value)) == pytest.approx(value)
        if p.low < p.high:
            assert 0 <= to_unit(p, value) <= 1

    def test_steps_and_choices_have_equal_parts(self) -> None:
        for p, values in (
            (Parameter("x", "int", 2, 31, step=4), 8),
            (Parameter("x", "float", 0.0, 1.0, step=0.25), 5),
            (Parameter("x", "choice", choices=("a", "b", "c")), 3),
        ):
            found = [from_unit(p, (k + 0.5) / 240) for k in range(240)]
            assert [found.count(v) for v in dict.fromkeys(found)] == [240 // values] * values

    def test_logarithms_are_drawn_as_optuna_draws_them(self) -> None:
        p = Parameter("x", "int", 1, 64, log=True)
        ours = [from_unit(p, (k + 0.5) / 4000) for k in range(4000)]
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        theirs = [study.ask({"x": distribution(p)}).params["x"] for _ in range(4000)]
        for value in (1, 2, 8, 64):
            assert ours.count(value) / 4000 == pytest.approx(theirs.count(value) / 4000, abs=0.02)


def drawn(e: Experiment, count: int, value: Any = lambda values: 0.5, state: Any = None) -> list[Any]:
    """Suggestions one after the other, each told what ``value`` says of it."""
    past: list[Any] = []
    space = parse(e)
    for number in range(count):
        scratch = scratch_trial(past, [optuna.study.StudyDirection.MAXIMIZE], make_sampler(e, number, space))
        values = space(scratch)
        told = (state or (lambda number: TrialState.COMPLETE))(number)
        found = value(values)
        trial = create_trial(
            state=told,
            params=scratch.params,
            distributions=scratch.distributions,
            values=[found] if told == TrialState.COMPLETE else None,
            intermediate_values={} if told in (TrialState.FAIL, TrialState.RUNNING) else {3: found},
        )
        trial.number = trial._trial_id = number
        past.append(trial)
    return past


class TestQMC:
    def test_points_are_those_of_one_sobol_sequence(self) -> None:
        from scipy.stats import qmc

        e = experiment(NUMBERS, sampler="qmc", seed=3)
        space = parse(e)
        sampler = make_sampler(e, 0)
        assert isinstance(sampler, QMC)
        points = qmc.Sobol(3, scramble=True, seed=sampler.seed).random(16)
        for trial, point in zip(drawn(e, 16), points, strict=True):
            assert trial.params == {p.key: from_unit(p, u) for p, u in zip(space.searched, point, strict=True)}

    def test_is_spread_more_evenly_than_random_under_conditions_too(self) -> None:
        def worst(sampler: str, seed: int) -> float:
            trials = drawn(experiment(MIXED, sampler=sampler, seed=seed), 32)
            found = []
            for key, p in (("train.lr", parse(experiment(MIXED)).parameters[0]),):
                places = sorted(to_unit(p, t.params[key]) for t in trials)
                found.append(max(abs(u - (k + 0.5) / 32) for k, u in enumerate(places)))
            choices = [t.params["train.schedule"] for t in trials]
            assert sampler == "random" or choices.count("step") == 16
            return max(found)

        assert statistics.fmean(worst("qmc", s) for s in range(4)) < 0.5 * statistics.fmean(
            worst("random", s) for s in range(4)
        )

    def test_seeds_scramble(self) -> None:
        first = [drawn(experiment(NUMBERS, sampler="qmc", seed=s), 1)[0].params["train.lr"] for s in range(4)]
        assert len(set(first)) == 4


GRID = {
    "train.lr": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1},
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.decay_epochs": {"choices": [[1], [1, 2], [2]], "when": {"train.schedule": ["step"]}},
    "train.momentum": 0.9,
}


class TestGrid:
    def test_cells_by_hand(self) -> None:
        space = parse(experiment(GRID))
        found = list(cells(space))
        assert count(space) == len(found) == 3 * (1 + 3)
        assert {"train.lr": 0.1, "train.schedule": "cosine"} in found
        assert {"train.lr": 0.2, "train.schedule": "step", "train.decay_epochs": 1} in found  # by position
        assert not any("train.momentum" in cell for cell in found)

    def test_the_order_is_of_the_seed_and_every_cell_comes_once(self) -> None:
        space = parse(experiment(GRID))

        def order(seed: int) -> list[dict[str, Any]]:
            tried: list[dict[str, Any]] = []
            while (cell := next_cell(space, seed, tried)) is not None:
                tried.append(cell)
            return tried

        assert order(1) == order(1) != order(2)
        assert sorted(map(str, order(1))) == sorted(map(str, cells(space)))

    def test_a_cell_that_was_tried_from_elsewhere_counts(self) -> None:
        space = parse(experiment(GRID))
        order = [c for c in (next_cell(space, 0, []),) if c]
        by_hand = dict(order[0])
        by_hand["train.lr"] += 1e-17 + by_hand["train.lr"] * 1e-15  # as adding up steps may give it
        assert next_cell(space, 0, [by_hand]) != order[0]
        elsewhere = {"train.lr": 0.123, "train.schedule": "cosine"}
        assert next_cell(space, 0, [elsewhere]) == order[0]

    def test_counting_ends_where_it_is_too_many(self) -> None:
        large = Space(tuple(Parameter(f"x{k}", "int", 0, 10**6) for k in range(20)))
        assert count(large, 1000) == 1001


def bowl(values: dict[str, Any]) -> float:
    """Best, 0, at lr 0.1, weight 7, batch size 24."""
    miss = (math.log10(values["train.lr"] / 0.1) / 3) ** 2 + ((values["method.host.weight"] - 7) / 10) ** 2
    return -miss - ((values["train.batch_size"] - 24) / 56) ** 2


class TestCMAES:
    def test_a_generation_is_told_as_by_the_library_itself(self) -> None:
        e = experiment(NUMBERS, sampler="cmaes", seed=5)
        space = parse(e)
        past = drawn(e, 20, bowl)  # two generations of seven, and six of the third
        sampler = make_sampler(e, 20, space)
        assert isinstance(sampler, StudyCMA)
        literal = cmaes.CMA(
            np.full(3, 0.5),
            1 / 6,
            bounds=np.tile([0.0, 1.0], (3, 1)),
            seed=sampler.seed,
            population_size=7,
            n_max_resampling=30,
        )
        for first in (0, 7):
            told = [
                (np.array([to_unit(p, t.params[p.key]) for p in space.searched]), -bowl(t.params))
                for t in past[first : first + 7]
            ]
            literal.tell(told)
        wanted = {p.key: from_unit(p, u) for p, u in zip(space.searched, literal.ask(), strict=True)}
        assert sampler.values(past) == wanted

    def test_comes_closer_than_random(self) -> None:
        def best(name: str, seed: int) -> float:
            past = drawn(experiment(NUMBERS, sampler=name, seed=seed, trials=40), 40, bowl)
            return statistics.fmean(sorted(-t.values[0] for t in past)[:5])

        missed = {name: statistics.fmean(best(name, s) for s in range(2)) for name in ("cmaes", "random")}
        assert 0 <= missed["cmaes"] < 0.5 * missed["random"]

    def test_stopped_trials_take_part_behind_finished_ones_and_failed_ones_do_not(self) -> None:
        e = experiment(NUMBERS, sampler="cmaes")
        space = parse(e)
        sampler = make_sampler(e, 7, space)
        assert isinstance(sampler, StudyCMA)
        past = drawn(e, 7, bowl)
        for trial in past:
            trial.intermediate_values = {3: trial.values[0]}
        whole = sampler.values(past)
        order = sorted(past, key=lambda t: t.values[0])
        for rank, trial in enumerate(
            order[:4]
        ):  # the worst were stopped, with accuracies that say nothing of their rank
            trial.state, trial.values = TrialState.PRUNED, None
            trial.intermediate_values = {1 + (rank >= 2): 0.9 + rank / 100}
        assert sampler.values(past) == whole
        past[0].state = TrialState.FAIL
        assert sampler.values(past) != whole
        middle = sampler.values([])
        assert sampler.values(past) == middle  # six are no generation


class TestNSGA2:
    def test_generations_and_elites_are_those_of_optuna(self) -> None:
        """One trial at a time: what Optuna's own sampler keeps in the study is worked out from the trials."""
        e = experiment(NUMBERS, sampler="nsga2", trials=40)
        space = parse(e)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.NSGAIISampler(population_size=10, seed=1)
        )
        for number in range(40):
            past = study.get_trials(deepcopy=False)
            trial = study.ask()
            study.tell(trial, bowl(space(trial)))
            told = study.trials[number].system_attrs["NSGAIISampler:generation"]
            kept = study._storage.get_study_system_attrs(study._study_id).get(f"NSGAIISampler:parent:{told}", [])
            ours = make_sampler(e, number, space)
            assert isinstance(ours, StudyNSGA2)
            scratch = scratch_trial(past, study.directions, ours)
            generation = ours.get_trial_generation(scratch.study, scratch._get_latest_trial())
            parents = ours.get_parent_population(scratch.study, generation)
            assert (generation, sorted(t.number for t in parents)) == (told, sorted(kept))
        assert generation == 3

    def test_stopped_and_failed_trials_are_no_parents(self) -> None:
        e = experiment(NUMBERS, sampler="nsga2", trials=40)
        odd = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
        past = drawn(e, 60, bowl, lambda number: odd[number % 4])
        sampler = make_sampler(e, 60)
        assert isinstance(sampler, StudyNSGA2)
        study = scratch_trial(past, [optuna.study.StudyDirection.MAXIMIZE], sampler).study
        assert sampler.get_trial_generation(study, past[0]) == 1  # of fifteen finished ones
        assert [t.number for t in sampler.get_population(study, 0)] == list(range(0, 40, 4))
        assert {t.number for t in sampler.get_parent_population(study, 1)} == set(range(0, 40, 4))

    def test_thousands_of_trials_are_no_deep_recursion(self) -> None:
        e = experiment({"train.lr": NUMBERS["train.lr"]}, sampler="nsga2", trials=32)
        some = drawn(e, 8, lambda values: values["train.lr"])
        past = []
        for number in range(12_000):
            trial = create_trial(params=some[number % 8].params, distributions=some[0].distributions, value=number % 97)
            trial.number = trial._trial_id = number
            past.append(trial)
        space = parse(e)
        assert space(scratch_trial(past, [optuna.study.StudyDirection.MAXIMIZE], make_sampler(e, 12_000, space)))


def test_gp_leaves_the_threads_as_they_were_and_suggests_the_same_on_any_number() -> None:
    import torch

    e = experiment(NUMBERS, sampler="gp", trials=16)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append([t.params for t in drawn(e, 6, bowl)])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert found[0] == found[1]
