"""Search spaces: every mistake is found while parsing, and every sample is a configuration that can be trained."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from akd import spaces
from akd.config import DataConfig, Experiment, load, resolve
from akd.data import load as load_data
from akd.data import split
from akd.errors import ExperimentError
from akd.fit import fit
from akd.space import Parameter, Space, parse
from akd.teacher import LiveTeacher
from akd.teacher.keep import as_experiment


def space_of(entries: dict[str, Any], **tree: Any) -> Space:
    return parse(resolve({**tree, "space": entries}))


def sample(space: Space, seed: int = 0, count: int = 1) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space(study.ask()) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


LR = "train.lr: {type: float, low: 0.01, high: 0.2}"


class TestMistakes:
    """Each entry stands in line 3 of a file; what the message must hold beside ``s.yaml:3``."""

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("train.lr: {type: float, low: 0.3, high: 0.2}", ["space.train.lr.low = 0.3", "at most high", "0.2"]),
            ("train.lr: {type: float, low: 0.0, high: 0.2, log: true}", ["train.lr.low = 0.0", "above 0", "log"]),
            ("train.ema: {type: float, low: -1, high: 0.2, log: true}", ["train.ema.low = -1", "above 0", "log"]),
            ("train.lr: {type: flaot, low: 0.1, high: 0.2}", ["train.lr.type = 'flaot'", "int or float"]),
            ("train.lr: {low: 0.1, high: 0.2}", ["train.lr.type = None", "int or float"]),
            ("train.lr: {type: float, low: 0.1, high: 0.2, step: 0.1, log: true}", ["lr.step = 0.1", "log"]),
            ("train.lr: {type: float, low: 0.1, high: 0.2, step: 0}", ["lr.step = 0", "above 0"]),
            ("train.lr: {type: float, low: 0.1, high: 0.2, log: yep}", ["lr.log = 'yep'", "true or false"]),
            ("train.lr: {type: float, low: 0.1}", ["lr.high = None", "a number"]),
            ("train.lr: {type: float, low: small, high: 0.2}", ["lr.low = 'small'", "a number"]),
            ("train.lr: {type: float, low: .nan, high: 0.2}", ["train.lr.low = nan", "a finite number"]),
            ("train.lr: {type: float, low: 0.1, high: .inf}", ["train.lr.high = inf", "a finite number"]),
            ("train.epochs: {type: int, low: 1.5, high: 3}", ["epochs.low = 1.5", "a whole number"]),
            ("train.batch_size: {type: int, low: 0, high: 3}", ["train.batch_size", "0", "a whole number >= 1"]),
            ("train.epochs: {type: int, low: 1, high: 3}", ["train.epochs", "rungs", "train.epoch_factor"]),
            ("train.lr: {type: float, low: 0.1, high: 0.2, logs: true}", ["lr.logs", "did you mean 'log'"]),
            ("train.lr: {type: float, low: 0.1, high: 0.2, qqqq: 1}", ["lr.qqqq", "choices", "when"]),
            ("train.momentum: {type: float, low: 0.1, high: 1.5}", ["train.momentum", "1.5", ">= 0 and < 1"]),
            ("train.schedule: {choices: [cosine, stp]}", ["train.schedule", "'stp'", "did you mean 'step'"]),
            ("train.lr: {choices: []}", ["train.lr.choices = []", "at least one"]),
            ("train.lr: {choices: 0.1}", ["train.lr.choices = 0.1", "a list"]),
            ("train.lr: {choices: [0.1, 0.2, 0.1]}", ["train.lr.choices", "twice"]),
            ("train.lr: {choices: [0.1, 0.2], low: 0.1}", ["train.lr.low", "no effect beside choices"]),
            ("train.lr: {value: 0.1, choices: [0.1]}", ["train.lr.choices", "no effect beside value"]),
            ("train.lrr: {type: float, low: 0.1, high: 0.2}", ["train.lrr", "did you mean 'lr'"]),
            ("trian.lr: {type: float, low: 0.1, high: 0.2}", ["trian", "did you mean 'train'"]),
            ("method.host.alpha: {type: float, low: 0.1, high: 0.2}", ["method.host.alpha", "temperature"]),
            ("method.host.name: {choices: [kd, kdd]}", ["'kdd'", "did you mean 'kd'"]),
            ("student: {choices: [resnet8, resnet9]}", ["'resnet9'", "did you mean 'resnet8'"]),
            ("search.trials: {type: int, low: 1, high: 3}", ["search.trials", "same for every trial"]),
            ("data.subset: {type: int, low: 100, high: 300}", ["data.subset", "same for every trial"]),
            ("data: {choices: [digits, cifar10]}", ["space.data", "same for every trial"]),
            ("teacher: {choices: [wrn_16_1, wrn_16_2]}", ["space.teacher", "every trial of a study shares it"]),
            ("teacher.train.lr: {choices: [0.1, 0.2]}", ["teacher.train.lr", "every trial of a study shares it"]),
            ("train.seed: {type: int, low: 1, high: 3}", ["train.seed", "shares it"]),
            ("train.plan_seed: {type: int, low: 1, high: 3}", ["train.plan_seed", "shares it"]),
            ("train.ema: {choices: [0.1], when: {train.lrr: [1]}}", ["train.lrr", "did you mean 'train.lr'"]),
            ("train.ema: {choices: [0.1, 0.2], when: []}", ["train.ema.when = []", "keys and lists"]),
            ("train.ema: {choices: [0.1, 0.2], when: {train.ema: [0.1]}}", ["train.ema", "circle"]),
        ],
    )  # fmt: skip
    def test_one_line_with_the_place(self, entry: str, words: list[str], tmp_path: Path) -> None:
        other = "train.lr: 0.1" if not entry.startswith("train.lr:") else "train.weight_decay: 0"
        path = tmp_path / "s.yaml"
        path.write_text(f"student: resnet8\nspace:\n  {entry}\n  {other}\n", encoding="utf-8")
        with pytest.raises(ExperimentError) as caught:
            parse(load(path, {}))
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(f"{path}:3: ")
        assert all(word in line for word in words), line

    def test_conditions_in_a_circle(self) -> None:
        with pytest.raises(ExperimentError, match="circle"):
            space_of(
                {
                    "train.lr": {"type": "float", "low": 0.1, "high": 0.2},
                    "train.ema": {"choices": [0.1, 0.2], "when": {"train.momentum": [0.5]}},
                    "train.momentum": {"choices": [0.5, 0.6], "when": {"train.ema": [0.1]}},
                }
            )

    def test_a_condition_that_can_never_hold(self) -> None:
        when = {"train.schedule": ["cosine", "stp"]}
        entries = {
            "train.schedule": {"choices": ["cosine", "constant", "step"]},
            "train.decay_epochs": {"choices": [[1]], "when": {"train.schedule": ["step"]}},
            "train.ema": {"choices": [0.1, 0.2], "when": when},
        }
        with pytest.raises(ExperimentError, match=re.escape("space.train.ema.when.train.schedule = 'stp'")) as caught:
            space_of(entries)
        assert "did you mean 'step'" in str(caught.value)

    def test_nothing_to_search(self) -> None:
        for entries in ({}, {"train.lr": 0.1}, {"train.lr": {"value": 0.1}}):
            with pytest.raises(ExperimentError, match="nothing to search"):
                space_of(entries)

    def test_a_range_only_one_of_two_methods_has(self) -> None:
        entry = {"type": "float", "low": 1.0, "high": 8.0}
        hosts = {"choices": ["kd", "none"]}
        with pytest.raises(ExperimentError, match=r"space\.method\.host\.temperature: .*host\.name is 'none'"):
            space_of({"method.host.name": hosts, "method.host.temperature": entry}, method="none")
        found = space_of(
            {"method.host.name": hosts, "method.host.temperature": {**entry, "when": {"method.host.name": ["kd"]}}},
            method="none",
        )
        assert len(found.searched) == 2


CONDITIONAL = {
    # Written before what it depends on: order is the parser's business.
    "train.decay_factor": {"type": "float", "low": 0.1, "high": 0.5, "when": {"train.decay_epochs": [[2, 4]]}},
    "train.decay_epochs": {"choices": [[2], [2, 4]], "when": {"train.schedule": ["step"]}},
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "train.batch_size": {"type": "int", "low": 16, "high": 64, "step": 16},
    "train.label_smoothing": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
    "train.nesterov": {"choices": [True, False]},
    "train.grad_clip": {"choices": [None, 1.0]},
    "train.momentum": 0.8,
    "method.host.temperature": {"value": 2.0, "when": {"train.nesterov": True}},
}


class TestSampling:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 2**31 - 1))
    def test_samples_keep_to_the_space(self, seed: int) -> None:
        experiment = resolve({"space": CONDITIONAL})
        (values,) = sample(parse(experiment), seed)
        assert ("train.decay_epochs" in values) == (values["train.schedule"] == "step")
        assert ("train.decay_factor" in values) == (values.get("train.decay_epochs") == [2, 4])
        assert ("method.host.temperature" in values) == values["train.nesterov"]
        assert values.get("train.decay_epochs", [2]) in ([2], [2, 4])
        assert 0.001 <= values["train.lr"] <= 1.0
        assert values["train.batch_size"] in (16, 32, 48, 64)
        assert type(values["train.batch_size"]) is int
        assert round(values["train.label_smoothing"] * 10, 9) in (0, 1, 2, 3)
        assert values["train.grad_clip"] in (None, 1.0)
        assert values["train.momentum"] == 0.8
        made = experiment.with_values(values)
        assert made.train.lr == values["train.lr"]
        assert made.train.decay_epochs == tuple(values.get("train.decay_epochs", ()))
        assert made.method.host.temperature == values.get("method.host.temperature", 4.0)

    def test_a_logarithmic_range_is_sampled_evenly_in_its_logarithm(self) -> None:
        values = [v["train.lr"] for v in sample(parse(resolve({"space": CONDITIONAL})), count=300)]
        below = sum(v < 0.001**0.5 for v in values)  # the geometric middle of 0.001 and 1
        assert 110 < below < 190

    @settings(max_examples=40, deadline=None)
    @given(
        st.sampled_from(["int", "float"]),
        st.integers(1, 50),
        st.integers(0, 50),
        st.booleans(),
        st.integers(0, 1000),
    )
    def test_any_range(self, kind: str, low: int, width: int, log: bool, seed: int) -> None:
        entry = {"type": kind, "low": low, "high": low + width, "log": log}
        (values,) = sample(space_of({"train.weight_decay" if kind == "float" else "train.batch_size": entry}), seed)
        (value,) = values.values()
        assert low <= value <= low + width
        assert type(value) is {"int": int, "float": float}[kind]

    def test_a_range_of_one_value(self) -> None:
        space = space_of({"train.batch_size": {"type": "int", "low": 3, "high": 3}})
        assert sample(space) == [{"train.batch_size": 3}]

    def test_a_student_can_be_searched(self) -> None:
        experiment = resolve({"space": {"student": {"choices": ["resnet8", "resnet20"]}}})
        names = {experiment.with_values(v).student.name for v in sample(parse(experiment), count=20)}
        assert names == {"resnet8", "resnet20"}

    def test_pickled_and_back(self) -> None:
        space = parse(resolve({"space": CONDITIONAL}))
        again = pickle.loads(pickle.dumps(space))
        assert again == space
        assert sample(again, 5, 10) == sample(space, 5, 10)

    def test_parsing_leaves_the_experiment_alone(self) -> None:
        experiment = resolve({"space": CONDITIONAL})
        before = copy.deepcopy(experiment)
        space = parse(experiment)
        sample(space)
        assert experiment == before

    def test_searched_are_those_that_vary(self) -> None:
        space = parse(resolve({"space": CONDITIONAL}))
        assert {p.key for p in space.parameters} - {p.key for p in space.searched} == {
            "train.momentum",
            "method.host.temperature",
        }
        assert [p.key for p in space.parameters].index("train.decay_epochs") > [p.key for p in space.parameters].index(
            "train.schedule"
        )

    def test_extremes(self) -> None:
        assert Parameter("k", "int", 1, 5).extremes() == (1, 5)
        low, high, within = Parameter("k", "float", 0.5, 5).extremes()
        assert low == 0.5 < within < high == 5
        assert within % 1  # a whole number, where one is needed, is not all that will be drawn
        assert Parameter("k", "float", 1, 5, step=2).extremes() == (1, 5)
        assert Parameter("k", "choice", choices=("a", "b")).extremes() == ("a", "b")


@pytest.mark.parametrize("name", spaces.names())
class TestShipped:
    def experiment(self, name: str) -> Experiment:
        return load(spaces.find(name), {})

    def test_parses_and_says_what_it_asks(self, name: str) -> None:
        experiment = self.experiment(name)
        assert parse(experiment).searched
        text = spaces.find(name).read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert "?" in spaces.headline(spaces.find(name))
        assert "# command:" in text

    def test_a_sample_trains(self, name: str) -> None:
        """One step of the sampled configuration and the two it shares with others, on a few digits."""
        experiment = self.experiment(name)
        (values,) = sample(parse(experiment), seed=3)
        small = replace(experiment.with_values(values), data=DataConfig(name="digits", subset=80))
        small = replace(small, train=replace(small.train, epochs=1, batch_size=64, threads=None))
        data = split(small.data, load_data(small.data))
        source = None
        if small.needs_teacher:
            own = as_experiment(small)
            own = replace(own, train=replace(small.train, ema=0.0))
            source = LiveTeacher(fit(own, data, None).student, small.method.needs)
        result = fit(small, data, source)
        assert result.epochs_run == 1
        assert all(torch.isfinite(p).all() for p in result.student.parameters())
