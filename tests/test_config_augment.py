"""``method.augment`` in files, flags and spaces, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from akd.config import load, resolve
from akd.data.policies import augments
from akd.errors import ExperimentError
from akd.space import parse


def augment(tree: Any) -> Any:
    return resolve({"method": tree}).method.augment


class TestForms:
    def test_name_alone_or_a_mapping(self) -> None:
        plain = augment({"augment": "cutmix_pick"})
        assert (plain.name, plain.form, plain.criterion, plain.pool, plain.keep) == (
            "cutmix_pick",
            "second",
            "kl",
            2,
            1,
        )
        assert augment({"host": "kd", "augment": {"name": "cutmix_pick"}}) == plain
        assert augment({"augment": {"name": "mixup", "alpha": 0.2, "form": "only"}}).alpha == 0.2

    @pytest.mark.parametrize("tree", ["kd", {"augment": None}, {"augment": "none"}, {"augment": {"name": "none"}}])
    def test_none(self, tree: Any) -> None:
        assert augment(tree) is None

    @pytest.mark.parametrize("name", augments.names())
    def test_every_policy_round_trips(self, name: str) -> None:
        e = resolve({"method": {"host": "kd", "augment": name}})
        assert e.method.title == f"kd with {name}"
        assert resolve(yaml.safe_load(e.to_yaml()), strict=False) == e

    def test_flags(self, tmp_path: Path) -> None:
        path = tmp_path / "e.yaml"
        path.write_text("method: {host: kd, augment: {name: mixup, alpha: 0.5}}\n", encoding="utf-8")
        assert load(path, {"method.augment.alpha": 2}).method.augment.alpha == 2
        assert load(path, {"method.augment": "cutout"}).method.augment.name == "cutout"
        assert load(path, {"method.augment": "none"}).method.augment is None
        assert load(None, {"method.augment": "cutout", "method.augment.size": 0.25}).method.augment.size == 0.25
        assert load(None, {"method.augment.name": "cutmix"}).method.augment.name == "cutmix"

    def test_another_policy_starts_from_its_own_defaults(self) -> None:
        e = resolve({"method": {"host": "kd", "augment": {"name": "mixup", "alpha": 0.5}}})
        assert e.with_values({"method.augment.name": "cutmix"}).method.augment.alpha == 1
        assert e.with_values({"method.augment.name": "mixup"}).method.augment.alpha == 0.5
        assert e.with_values({"method.augment.name": "none"}).method.augment is None

    def test_in_a_space(self) -> None:
        e = resolve(
            {
                "method": "kd",
                "space": {
                    "method.augment.name": {"choices": ["none", "cutmix", "randaugment"]},
                    "method.augment.alpha": {
                        "type": "float",
                        "low": 0.2,
                        "high": 2.0,
                        "when": {"method.augment.name": ["cutmix"]},
                    },
                    "train.epoch_factor": {"choices": [1, 2, 4]},
                },
            }
        )
        space = parse(e)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        seen = {e.with_values(space(study.ask())).method.augment_name for _ in range(20)}
        assert seen == {None, "cutmix", "randaugment"}


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "words"),
        [
            ("{host: kd, augment: cutmx}", ["method.augment", "'cutmx'", "did you mean 'cutmix'"]),
            ("{host: kd, augment: kd}", ["no augmentation policy", "method.host: kd"]),
            ("{host: kd, augment: {alpha: 1}}", ["method.augment.name", "needs a name", "cutmix_pick"]),
            ("{host: kd, augment: {name: none, alpha: 1}}", ["method.augment.alpha", "no effect without augmentation"]),
            ("{host: kd, augment: {name: cutout, alpha: 1}}", ["method.augment.alpha", "unknown key", "size"]),
            ("{host: kd, augment: {name: mixup, alpha: 0}}", ["method.augment.alpha", "> 0"]),
            ("{host: kd, augment: {name: mixup, form: third}}", ["method.augment.form", "one of only, second"]),
            ("{host: kd, augment: {name: randaugment, magnitude: 31}}", ["method.augment.magnitude", "<= 30"]),
            ("{host: none, augment: cutmix}", ["method.augment.form = 'second'", "none learns from no teacher"]),
            (
                "{host: none, augment: {name: cutmix_pick, form: only}}",
                ["method.augment.criterion = 'kl'", "student_entropy can"],
            ),
            (
                "{host: none, augment: {name: cutmix_pick, form: only, criterion: teacher_entropy}}",
                ["method.augment.criterion = 'teacher_entropy'"],
            ),
            ("{host: kd, augment: {name: cutmix_pick, pool: 2, keep: 3}}", ["method.augment.keep = 3", "pool"]),
            (
                "{host: kd, augment: {name: cutmix_pick, criterion: teacher_entropy, temperature: 2}}",
                ["method.augment.temperature = 2", "criterion: kl"],
            ),
        ],
    )  # fmt: skip
    def test_one_line_with_the_place_and_the_reason(self, method: str, words: list[str], tmp_path: Path) -> None:
        path = tmp_path / "e.yaml"
        path.write_text(f"student: resnet8\nmethod: {method}\n", encoding="utf-8")
        with pytest.raises(ExperimentError) as caught:
            load(path, {})
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(f"{path}:2: ")
        assert all(word in line for word in words), line

    def test_a_space_that_would_lead_there(self) -> None:
        tree = {
            "method": {"host": "kd", "augment": "cutmix"},
            "space": {"method.host.name": {"choices": ["kd", "none"]}},
        }
        with pytest.raises(ExperimentError, match=r"form = 'second': a second view has no label but the teacher's"):
            parse(resolve(tree))

    @pytest.mark.parametrize("value", [0, 1.5, "two"])
    def test_epoch_factor(self, value: Any) -> None:
        with pytest.raises(ExperimentError, match=r"train\.epoch_factor .* whole number >= 1"):
            resolve({"train": {"epoch_factor": value}})
