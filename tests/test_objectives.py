"""Objectives and constraints as people write them; the front against the definition of dominance, and Optuna's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from akd import objectives
from akd.config import Experiment, load, resolve
from akd.errors import ExperimentError
from akd.objectives import COSTS, NAMES, front
from akd.settings import Origins


class TestReading:
    def test_accuracy_alone_is_the_default(self) -> None:
        search = resolve({}).search
        assert (search.objectives, search.constraints) == (("accuracy",), None)
        assert resolve({"search": {"constraints": {}}}).search.constraints is None

    @pytest.mark.parametrize("given", ["parameters, accuracy,latency_1", ["parameters", "accuracy", "latency_1"]])
    def test_accuracy_comes_first(self, given: Any) -> None:
        assert resolve({"search": {"objectives": given}}).search.objectives == ("accuracy", "parameters", "latency_1")

    @pytest.mark.parametrize(
        ("name", "given", "wanted"),
        [
            ("parameters", "1 M", 1e6),
            ("parameters", "250k", 250e3),
            ("parameters", 77754, 77754.0),
            ("flops", "1.2G", 1.2e9),
            ("flops", "3e7", 3e7),
            ("latency_1", 3, 3.0),
            ("latency_1", ".5", 0.5),
            ("latency_64", " 12.5 ms ", 12.5),
        ],
    )
    def test_amounts(self, name: str, given: Any, wanted: float) -> None:
        constraints = resolve({"search": {"constraints": {name: given}}}).search.constraints
        assert constraints is not None
        assert constraints.given() == {name: wanted}

    def test_a_flag_means_what_the_file_means(self) -> None:
        flagged = load(
            None, {"search.constraints": "parameters=1M, latency_1=3"}, {"search.constraints": "--constraint"}
        )
        dotted = load(None, {"search.constraints.parameters": "1M", "search.constraints.latency_1": 3})
        filed = resolve({"search": {"constraints": {"parameters": "1 M", "latency_1": "3 ms"}}})
        assert flagged == dotted == filed
        assert resolve(filed.to_dict()) == filed

    @pytest.mark.parametrize(
        ("search", "says"),
        [
            (
                {"objectives": "accuracy,size"},
                "search.objectives = ['accuracy', 'size']: must be one of accuracy, flops",
            ),
            ({"objectives": ["parameters"]}, "must name accuracy, which names the winner; beside it parameters, flops"),
            ({"objectives": ["accuracy", "flops", "flops"]}, "names flops twice"),
            ({"objectives": []}, "must name accuracy"),
            ({"objectives": 3}, "search.objectives = 3: must be one of accuracy"),
            ({"constraints": {"size": 3}}, "search.constraints.size: unknown key, allowed are flops, latency_1"),
            ({"constraints": {"paramters": 3}}, "did you mean 'parameters'"),
            (
                {"constraints": {"parameters": "few"}},
                "search.constraints.parameters = 'few': must be a count like 250 k",
            ),
            ({"constraints": {"latency_1": "3 s"}}, "must be milliseconds like 3, 3 ms or 0.8"),
            ({"constraints": {"flops": 0}}, "search.constraints.flops = 0: must be a number > 0"),
            ({"constraints": {"flops": True}}, "must be a number > 0"),
            ({"constraints": "parameters"}, "must be like parameters=1M,latency_1=3; costs are parameters, flops"),
            ({"constraints": "flops=1M,flops=2M"}, "names flops twice"),
            ({"constraints": [1]}, "must hold costs and what is allowed at most"),
        ],
    )
    def test_mistakes(self, search: dict[str, Any], says: str) -> None:
        with pytest.raises(ExperimentError) as error:
            resolve({"search": search})
        assert says in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_sampler_of_one_value_is_refused(self) -> None:
        search: Any = SimpleNamespace(objectives=("accuracy", "flops"), sampler="cmaes")
        with pytest.raises(
            ExperimentError, match=r"^s\.yaml:3: search\.sampler = 'cmaes': cannot be combined with sev"
        ):
            objectives.check(search, Origins({"search.sampler": "s.yaml:3"}))
        search.objectives = ("accuracy",)
        objectives.check(search, Origins())

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_optuna_refuses_the_same_samplers(self) -> None:
        """Those that are let through can suggest for two directions; those refused cannot."""
        made = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        made |= {"nsga2": optuna.samplers.NSGAIISampler, "qmc": optuna.samplers.QMCSampler}  # type: ignore[dict-item]
        made |= {"gp": optuna.samplers.GPSampler}  # type: ignore[dict-item]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for name, sampler in made.items():
            assert name not in objectives.ONE_DIRECTION
            study = optuna.create_study(
                directions=objectives.directions(["accuracy", "flops"]), sampler=sampler(seed=0)
            )
            study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=12)
            assert len(study.best_trials) >= 1
        pytest.importorskip("cmaes")
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.CmaEsSampler())
        with pytest.raises(ValueError, match="multi-objective"):
            study.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=3)


class TestFigures:
    def test_names(self) -> None:
        assert NAMES == ("accuracy", "parameters", "flops", "latency_1", "latency_64")
        metrics = ["cost/parameters", "cost/flops", "cost/latency_1_ms", "cost/latency_64_ms"]
        assert [cost.metric for cost in COSTS.values()] == metrics
        figures = {"parameters": 3.0, "latency_64": 2.5}
        assert objectives.figures_of(objectives.as_results(figures) | {"test/accuracy": 1.0}) == figures

    def test_shown(self) -> None:
        assert [COSTS["flops"].shown(v) for v in (12, 77754, 1.53e6, 2e9, 4e12)] == [
            "12",
            "77.8 k",
            "1.53 M",
            "2 G",
            "4 T",
        ]
        assert COSTS["latency_1"].shown(0.4217) == "0.422 ms"

    def test_what_is_timed_and_what_is_broken(self) -> None:
        def search(**given: Any) -> Any:
            return resolve({"search": given}).search

        assert objectives.timed(search(objectives="accuracy,flops", constraints={"parameters": 9})) == []
        assert objectives.timed(search(objectives="accuracy,latency_64", constraints={"latency_1": 9})) == [
            "latency_1",
            "latency_64",
        ]
        both = search(objectives="accuracy,latency_64", constraints={"latency_1": 9, "flops": 9})
        assert objectives.timed(both, bounded=True) == ["latency_1"]
        bounded = search(constraints={"parameters": 100, "latency_1": 2})
        assert objectives.broken(bounded, {"parameters": 100, "latency_1": 2}) == []  # at most
        assert objectives.broken(bounded, {"parameters": 101}) == ["101 parameters, at most 100 are allowed"]
        assert len(objectives.broken(bounded, {"parameters": 101, "latency_1": 2.1})) == 2


def literally(points: dict[int, tuple[float, ...]]) -> set[int]:
    """Pareto's definition, word for word: accuracy is to be high, all else low."""

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        nowhere_worse = a[0] >= b[0] and all(x <= y for x, y in zip(a[1:], b[1:], strict=True))
        somewhere_better = a[0] > b[0] or any(x < y for x, y in zip(a[1:], b[1:], strict=True))
        return nowhere_worse and somewhere_better

    return {n for n, mine in points.items() if not any(dominates(other, mine) for other in points.values())}


# Few different values, so that ties are common.
VALUES = st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 3)


class TestFront:
    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(st.integers(0, 50), VALUES, max_size=25), st.integers(2, 3))
    def test_is_that_of_the_definition_and_of_optuna(self, points: dict[int, Any], width: int) -> None:
        names = ["accuracy", "parameters", "latency_1"][:width]
        points = {n: values[:width] for n, values in points.items()}
        found = front(points, names)
        assert set(found) == literally(points)
        accuracies = [points[n][0] for n in found]
        assert accuracies == sorted(accuracies, reverse=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=objectives.directions(names))
        order = list(points)
        study.add_trials([create_trial(values=list(points[n])) for n in order])
        assert {order[t.number] for t in study.best_trials} == set(found)

    def test_of_nothing_and_of_equals(self) -> None:
        names = ("accuracy", "parameters")
        assert front({}, names) == []
        assert front({3: (0.9, 5.0), 1: (0.9, 5.0), 2: (0.9, 6.0)}, names) == [1, 3]


def test_another_student_starts_without_the_taps_of_the_first() -> None:
    experiment: Experiment = resolve({"student": {"name": "timm:resnet18", "taps": ["layer1"]}})
    assert experiment.with_values({"student.name": "resnet8"}).student.taps == ()
    assert experiment.with_values({"student.name": "timm:resnet18"}).student.taps == ("layer1",)
    assert experiment.with_values({"train.lr": 0.1}).student.taps == ("layer1",)
