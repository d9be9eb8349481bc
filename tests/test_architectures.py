"""The students of a space: found, bounded before the search, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from akd import architectures, costs
from akd.champion import at_length_of
from akd.config import Experiment, resolve
from akd.errors import ExperimentError
from akd.prepare import Prepared, prepare
from akd.space import parse

LR = {"type": "float", "low": 0.01, "high": 0.1}
THREE = {"choices": ["resnet8", "resnet14", "wrn_40_2"]}


def experiment(space: dict[str, Any], student: str = "resnet8", **search: Any) -> Experiment:
    return resolve(
        {
            "data": {"name": "digits", "subset": 300},
            "teacher": "wrn_16_1",
            "student": student,
            "search": {"trials": 4, **search},
            "space": {"train.lr": LR, **space},
        }
    )


def ready(space: dict[str, Any], student: str = "resnet8", **search: Any) -> Prepared:
    return architectures.priced(prepare(experiment(space, student, **search)))


def names(space: dict[str, Any], student: str = "resnet8") -> list[str]:
    e = experiment(space, student)
    return list(architectures.students(parse(e), e))


class TestStudents:
    def test_of_a_space(self) -> None:
        assert names({}) == ["resnet8"]
        assert names({"student.name": THREE}, "vgg8") == THREE["choices"]
        assert names({"student.name": {"value": "resnet14"}}) == ["resnet14"]

    def test_the_experiments_own_where_a_trial_may_go_without_a_choice(self) -> None:
        host = {"method.host.name": {"choices": ["kd", "dkd"]}}
        chosen = {"choices": ["resnet14", "resnet20"], "when": {"method.host.name": ["dkd"]}}
        assert names(host | {"student.name": chosen}, "vgg8") == ["vgg8", "resnet14", "resnet20"]

    def test_title(self) -> None:
        assert architectures.title(experiment({})) == "resnet8"
        assert architectures.title(experiment({"student.name": THREE})) == "resnet8, resnet14, wrn_40_2"
        four = {"choices": [*THREE["choices"], "vgg8"]}
        assert architectures.title(experiment({"student.name": four})) == "4 students"
        assert architectures.title(experiment({"student.name": "resnet14"})) == "resnet14"


class TestConstraints:
    def test_what_costs_too_much_is_not_in_the_space(self) -> None:
        space = {
            "student.name": THREE,
            "train.momentum": {"choices": [0.8, 0.9], "when": {"student.name": ["wrn_40_2"]}},
            "train.nesterov": {"choices": [True, False], "when": {"train.momentum": [0.9]}},
            "train.weight_decay": {**LR, "when": {"student.name": ["wrn_40_2", "resnet8"]}},
        }
        found = ready(space, constraints={"parameters": "1 M"})
        by_key = {p.key: p for p in found.space.parameters}
        assert by_key["student.name"].choices == ("resnet8", "resnet14")
        assert by_key["train.weight_decay"].when == (("student.name", ("resnet8",)),)
        assert by_key.keys() == {"train.lr", "student.name", "train.weight_decay"}  # the others can exist no more
        assert found.left_out == {"wrn_40_2": "2,243,258 parameters, at most 1,000,000 are allowed"}
        assert list(architectures.words(found)) == [
            "student resnet8: 77.8 k parameters, 1.53 M FLOPs of an image",
            "student resnet14: 175 k parameters, 3.3 M FLOPs of an image",
            "left out: wrn_40_2 costs 2,243,258 parameters, at most 1,000,000 are allowed",
        ]

    def test_nothing_left_names_the_smallest(self) -> None:
        line = (
            r"^search\.constraints\.parameters = '50 k': it leaves no student of the space; "
            r"the smallest, resnet8 costs 77,754 parameters, at most 50,000 are allowed$"
        )
        with pytest.raises(ExperimentError, match=line):
            ready({"student.name": {"choices": ["wrn_40_2", "resnet8"]}}, constraints={"parameters": "50k"})

    def test_each_breaks_another_one(self) -> None:
        """resnet8 has fewer parameters than MobileNetV2 has; of the FLOPs it is the other way round, here made up."""
        e = experiment({"student.name": {"choices": ["a", "b"]}}, constraints={"parameters": 10, "flops": 10})
        table = {"a": {"parameters": 5.0, "flops": 20.0}, "b": {"parameters": 20.0, "flops": 5.0}}
        space = parse(experiment({"student.name": {"choices": ["resnet8", "resnet14"]}}))
        space = architectures.restricted(space, "student.name", ["resnet8", "resnet14"])
        table = {"resnet8": table["a"], "resnet14": table["b"]}
        with pytest.raises(ExperimentError, match=r"^search\.constraints\.parameters = '10': it leaves no student"):
            architectures.within(space, e, table)

    def test_a_student_that_is_not_searched(self) -> None:
        line = r"^search\.constraints\.flops = '1 M': resnet8 costs 1,527,040 FLOPs of an image, at most 1,000,000 are"
        with pytest.raises(ExperimentError, match=line):
            ready({}, constraints={"flops": "1M"})
        host = {"method.host.name": {"choices": ["kd", "dkd"]}}
        chosen = {"choices": ["resnet8", "resnet14"], "when": {"method.host.name": ["dkd"]}}
        with pytest.raises(
            ExperimentError, match=r"wrn_40_2 costs .* is not among the choices of space\.student\.name"
        ):
            ready(host | {"student.name": chosen}, "wrn_40_2", constraints={"parameters": "1 M"})

    def test_one_left_is_a_search_still(self) -> None:
        found = ready({"student.name": THREE}, objectives="accuracy,parameters", constraints={"parameters": "100k"})
        assert list(architectures.students(found.space, found.experiment)) == ["resnet8"]

    def test_objectives_without_a_choice_of_student(self) -> None:
        line = r"^search\.objectives = \['accuracy', 'flops'\]: have no effect .* same student, resnet8; search student"
        with pytest.raises(ExperimentError, match=line):
            ready({}, objectives="accuracy,flops")


class TestLatency:
    def test_is_measured_once(self) -> None:
        asked: list[list[str]] = []

        def clock(students: Mapping[str, Experiment], made_for: costs.Input, wanted: Sequence[str]) -> costs.Table:
            asked.append(list(students))
            assert (made_for, list(wanted)) == (costs.Input(10, 1, (8, 8)), ["latency_1"])
            return {name: {"latency_1": len(name) / 4} for name in students}

        first = architectures.clocked(
            ready({"student.name": THREE}, objectives="accuracy,latency_1", constraints={"parameters": "1 M"}), clock
        )
        assert asked == [["resnet8", "resnet14"]]  # the third is left out before the clock runs
        assert first.costs["resnet14"] == {"parameters": 174970.0, "flops": 3296512.0, "latency_1": 2.0}
        again = architectures.clocked(architectures.priced(prepare(first.experiment), first.costs), clock)
        assert asked == [["resnet8", "resnet14"]]
        assert again.costs == first.costs
        more = {name: figures for name, figures in first.costs.items() if name != "resnet8"}
        architectures.clocked(architectures.priced(prepare(first.experiment), more), clock)
        assert asked[1:] == [["resnet8"]]

    def test_a_slow_student_is_left_out_and_counted_figures_are_not_timed(self) -> None:
        bounded = ready({"student.name": THREE}, constraints={"latency_64": 5})
        found = architectures.clocked(
            bounded, lambda students, *_: {n: {"latency_64": 9.0 if n == "wrn_40_2" else 4.0} for n in students}
        )
        assert list(found.left_out) == ["wrn_40_2"]
        assert found.left_out["wrn_40_2"] == "9 ms for 64 images, at most 5 are allowed"

        def never(*_: Any) -> costs.Table:
            raise AssertionError

        architectures.clocked(ready({"student.name": THREE}, objectives="accuracy,flops"), never)


class TestControls:
    def test_beside_the_search_have_a_student_that_a_trial_may_have(self) -> None:
        def controls(student: str, **search: Any) -> set[str]:
            found = ready({"student.name": THREE}, student, **search)
            return {e.student.name for e in found.controls.values()}

        assert controls("resnet14") == {"resnet14"}
        assert controls("vgg8") == {"resnet8"}
        assert controls("wrn_40_2", constraints={"parameters": "1 M"}) == {"resnet8"}

    def test_of_the_final_runs_have_the_winners(self) -> None:
        e = experiment({"student.name": THREE})
        winner = e.with_values({"student.name": "resnet14", "train.epoch_factor": 2})
        found = at_length_of(winner, ready({"student.name": THREE}).controls)
        assert {(c.student.name, c.train.epoch_factor) for c in found.values()} == {("resnet14", 2)}
        assert found["none"].method.host_name == "none"
