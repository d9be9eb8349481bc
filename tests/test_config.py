"""Experiment files, overrides, and the one-line answers to mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from akd.config import Experiment, TrainConfig, load, resolve
from akd.errors import ExperimentError
from akd.methods.angular_kd import AngularKDConfig
from akd.methods.kd import KDConfig
from akd.space import parse


def write(folder: Path, text: str) -> Path:
    path = folder / "e.yaml"
    path.write_text(text)
    return path


def error(call: Any, *args: Any, **kw: Any) -> str:
    with pytest.raises(ExperimentError) as caught:
        call(*args, **kw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestForms:
    def test_defaults(self) -> None:
        plain = resolve({})
        assert (plain.data.name, plain.teacher.name, plain.student.name) == ("digits", "wrn_16_2", "resnet8")
        assert plain.method.host == KDConfig()
        assert plain.train == TrainConfig()
        assert plain.teacher.train == TrainConfig(schedule="cosine", ema=0.0)  # nothing stops it at a rung
        assert plain.space == {}
        assert resolve({}) == plain

    @pytest.mark.parametrize(
        "tree",
        [
            {"data": "cifar100", "teacher": "resnet20", "student": "wrn_16_1", "method": "none"},
            {"data": {"name": "cifar100"}, "teacher": {"name": "resnet20"}, "student": {"name": "wrn_16_1"}}
            | {"method": {"host": "none"}},
            {"data": "cifar100", "teacher": {"name": "resnet20"}, "student": "wrn_16_1"}
            | {"method": {"host": {"name": "none"}}},
        ],
    )
    def test_shorthands_mean_the_same(self, tree: dict[str, Any]) -> None:
        got = resolve(tree)
        assert (got.data.name, got.teacher.name, got.student.name) == ("cifar100", "resnet20", "wrn_16_1")
        assert got.method.host_name == "none"

    def test_host_without_a_name_is_kd(self) -> None:
        assert resolve({"method": {"host": {"temperature": 2}}}).method.host == KDConfig(temperature=2.0)
        assert resolve({"method": {}}).method.host == KDConfig()

    def test_nested_sections(self, tmp_path: Path) -> None:
        text = """
            data: {name: cifar10, subset: 3000}
            teacher: {name: resnet20, train: {epochs: 7, schedule: step, decay_epochs: [3, 5]}}
            train: {lr: 1e-3, ema: 0.999}
            search: {trials: 9, grace: 2}
            space:
              train.lr: {type: float, low: 0.01, high: 0.2, log: true}
        """
        got = load(write(tmp_path, text), {})
        assert got.data.subset == 3000
        assert got.teacher.train == TrainConfig(epochs=7, schedule="step", decay_epochs=(3, 5), ema=0.0)
        assert (got.train.lr, got.train.ema, got.search.grace) == (1e-3, 0.999, 2)
        assert got.space == {"train.lr": {"type": "float", "low": 0.01, "high": 0.2, "log": True}}

    def test_what_is_resolved_reads_back_as_the_same(self, tmp_path: Path) -> None:
        trees = [
            {},
            {"method": "none", "train": {"nesterov": True, "grad_clip": 2.0, "precision": "float64", "threads": 2}},
            {"train": {"schedule": "step", "decay_epochs": [2], "decay_factor": 0.5}, "space": {"train.lr": 0.1}},
            {"search": {"scheduler": "none"}, "data": {"name": "cifar100", "dir": "/x", "augment": "crop"}},
        ]
        for tree in trees:
            whole = resolve(tree)
            assert load(write(tmp_path, whole.to_yaml()), {}) == whole
            assert resolve(whole.to_dict()) == whole
            assert yaml.safe_load(whole.to_yaml()) == whole.to_dict()

    def test_what_an_older_study_spelled_out_stays(self) -> None:
        tree = resolve({"train": {"schedule": "cosine", "ema": 0.0, "epochs": 18}}).to_dict()
        for train in (tree["train"], tree["teacher"]["train"]):
            del train["restarts"]  # which it did not know
        again = resolve(tree)
        assert (again.train.schedule, again.train.restarts, again.train.ema) == ("cosine", (), 0.0)
        assert (again.teacher.train.schedule, again.teacher.train.restarts, again.teacher.train.ema) == (
            "cosine",
            (),
            0.0,
        )

    def test_is_frozen_and_leaves_its_input_alone(self) -> None:
        tree = {"method": "none", "train": {"lr": 1}}
        got = resolve(tree)
        assert tree == {"method": "none", "train": {"lr": 1}}
        with pytest.raises(dataclasses.FrozenInstanceError):
            got.train.lr = 2.0

    def test_needs_teacher(self) -> None:
        assert resolve({"method": "kd"}).needs_teacher
        assert not resolve({"method": "none"}).needs_teacher


class TestViews:
    @pytest.mark.parametrize(
        "method",
        [
            "angular_kd",
            {"views": "angular_kd"},
            {"views": {"name": "angular_kd"}},
            {"host": "kd", "views": "angular_kd"},
            {"host": {"name": "kd"}, "views": {"name": "angular_kd", "count": 5}},
        ],
    )
    def test_forms_that_mean_the_same(self, method: Any) -> None:
        got = resolve({"method": method}).method
        assert (got.host, got.views) == (KDConfig(), AngularKDConfig())
        assert (got.host_name, got.views_name, got.name) == ("kd", "angular_kd", "angular_kd")
        assert got.title == "angular_kd over kd"
        assert got.needs == {"logits", "embedding"}

    @pytest.mark.parametrize(
        "method", ["kd", {"views": None}, {"views": "none"}, {"host": "kd", "views": {"name": "none"}}]
    )
    def test_without(self, method: Any) -> None:
        got = resolve({"method": method}).method
        assert got.views is None
        assert got.name == got.title == "kd"
        assert got.needs == {"logits"}

    def test_reads_back(self, tmp_path: Path) -> None:
        whole = resolve({"method": {"views": {"name": "angular_kd", "head": "projected", "head_width": 9}}})
        assert load(write(tmp_path, whole.to_yaml()), {}) == whole
        assert load(write(tmp_path, resolve({}).to_yaml()), {}) == resolve({})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "method: angular_kdd",
                "method.host = 'angular_kdd': there is no such method host, did you mean 'angular_kd'?",
            ),
            (
                "method: {host: angular_kd}",
                "method.host = 'angular_kd': is no method host; write method.views: angular_kd",
            ),
            ("method: {views: kd}", "method.views = 'kd': is no kind of teacher views; write method.host: kd"),
            ("method: {views: {count: 3}}", "method.views.name: needs a name, known are angular_kd"),
            ("method: {views: {name: none, count: 3}}", "method.views.count: has no effect without views"),
            ("method: {views: 3}", "method.views = 3: must be a name, or hold keys and values"),
            ("method: {views: {name: 3}}", "method.views.name = 3: must be a string"),
            ("method: {views: {name: angular_kd, cuont: 3}}", "method.views.cuont: unknown key, did you mean 'count'?"),
            ("method: {views: {name: angular_kd, count: 0}}", "method.views.count = 0: must be a whole number >= 1"),
            (
                "method: {host: none, views: angular_kd}",
                "method.views = 'angular_kd': have no effect over none, which learns from no teacher",
            ),
            (
                "method: {views: {name: angular_kd, head_rank: 9}}",
                "method.views.head_rank = 9: has no effect while head is 'full'; it needs head: low_rank",
            ),
            (
                "method: {views: {name: angular_kd, head: low_rank, head_init: across}}",
                "method.views.head_init = 'across': has no effect while head is 'low_rank'; "
                "it needs head: full or projected",
            ),
            (
                "method: {views: {name: angular_kd, as_released: true, ensemble_norm: 2}}",
                "method.views.ensemble_norm = 2: has no effect while as_released is True; it needs as_released: false",
            ),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, message: str) -> None:
        path = write(tmp_path, text)
        assert error(load, path, {}).startswith(f"{path}:1: {message}")

    @pytest.mark.parametrize("text", [None, "method: none", "method: kd", "method: {host: kd, views: null}"])
    @pytest.mark.parametrize("key", ["method", "method.views", "method.views.name"])
    def test_overrides(self, tmp_path: Path, text: str | None, key: str) -> None:
        if text == "method: none" and key != "method":
            return  # views over a student alone are refused
        path = None if text is None else write(tmp_path, text)
        got = load(path, {key: "angular_kd", "method.views.count": 3, "method.host.weight": 2}).method
        assert (got.views, got.host) == (AngularKDConfig(count=3), KDConfig(weight=2.0))

    def test_overrides_that_take_views_away_or_name_no_views(self, tmp_path: Path) -> None:
        path = write(tmp_path, "method: {host: {name: kd, weight: 2}, views: {name: angular_kd, count: 3}}")
        assert load(path, {"method.views": "none"}).method == resolve({"method": {"host": {"weight": 2}}}).method
        assert load(path, {"method": "kd"}).method.views is None
        assert load(path, {"method.views.count": 4}).method.views.count == 4
        want = "--method.views: method.views = 'angularkd': there is no such kind of teacher views, did you mean"
        assert error(load, path, {"method.views": "angularkd"}).startswith(want)
        assert error(load, None, {"method.views.count": 3}).startswith(
            "--method.views.count: method.views.name: needs a"
        )

    def test_with_values(self) -> None:
        plain = resolve({})
        values = {"method.views.name": "angular_kd", "method.views.head": "low_rank", "method.views.head_rank": 9}
        got = plain.with_values(values)
        assert got.method.views == AngularKDConfig(head="low_rank", head_rank=9)
        assert got.with_values({"method.views.count": 2}).method.views.head_rank == 9
        assert got.with_values({"method.views.name": "none"}).method == plain.method
        # A search may leave a setting behind that has no effect any more.
        assert got.with_values({"method.views.head": "full"}).method.views.head_rank == 9
        assert error(plain.with_values, {"method.views.count": 2}).startswith("method.views.name: needs a name")

    def test_space_conditions(self) -> None:
        space = {
            "method.views.name": {"choices": ["none", "angular_kd"]},
            "method.views.head": {"choices": ["full", "low_rank"], "when": {"method.views.name": ["angular_kd"]}},
            "method.views.head_rank": {"type": "int", "low": 4, "high": 9, "when": {"method.views.head": ["low_rank"]}},
        }
        tree = {"method": "angular_kd", "space": space}
        assert [p.key.rpartition(".")[2] for p in parse(resolve(tree)).parameters] == ["name", "head", "head_rank"]
        del space["method.views.head"]["when"]
        with pytest.raises(ExperimentError, match=r"space\.method\.views\.head = 'full': has no effect without views"):
            parse(resolve(tree))


def test_a_section_with_nothing_under_it_is_left_at_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("train:\nmethod:\nspace:\n", encoding="utf-8")
    assert load(tmp_path / "e.yaml", {}) == load(None, {})


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trian: {}", ":1: trian: unknown key, did you mean 'train'?"),
            ("zzz: 1", ":1: zzz: unknown key, allowed are data, teacher, student, method, train, search, space"),
            ("train:\n  lrr: 1", ":2: train.lrr: unknown key, did you mean 'lr'?"),
            ("train:\n  epochs: 5\n  lr: -1", ":3: train.lr = -1: must be a number > 0"),
            ("train:\n  lr: fast", ":2: train.lr = 'fast': must be a number > 0"),
            ("train: {epochs: 2.5}", ":1: train.epochs = 2.5: must be a whole number >= 1"),
            ("train: {momentum: 1}", ":1: train.momentum = 1: must be a number >= 0 and < 1"),
            (
                "train: {schedule: cosin}",
                ":1: train.schedule = 'cosin': must be one of constant, cosine, restarts, step, did you mean 'cosine'?",
            ),
            ("train: {nesterov: 1}", ":1: train.nesterov = 1: must be true or false"),
            (
                "train:\n  decay_factor: 0.5",
                ":2: train.decay_factor = 0.5: has no effect while schedule is 'restarts'; it needs schedule: step",
            ),
            (
                "train:\n  schedule: step",
                ":2: train.decay_epochs: a step schedule needs decay_epochs, for example [150, 180, 210]",
            ),
            (
                "train: {schedule: restarts, restarts: [6, 3], epochs: 9}",
                ":1: train.restarts = [6, 3]: must be epochs below train.epochs (9), each after the one before it",
            ),
            (
                "train:\n  epochs: 9\n  schedule: restarts\n  restarts: [3, 9]",
                ":4: train.restarts = [3, 9]: must be epochs below train.epochs (9), each after the one before it",
            ),
            (
                "train: {schedule: cosine, restarts: [3]}",
                ":1: train.restarts = [3]: has no effect while schedule is 'cosine'; it needs schedule: restarts",
            ),
            ("train: {ema: often}", ":1: train.ema = 'often': must be a number >= 0 and < 1 or auto"),
            (
                "train:\n  nesterov: true\n  momentum: 0",
                ":2: train.nesterov = True: has no effect without momentum",
            ),
            ("teacher:\n  train:\n    lr: 0", ":3: teacher.train.lr = 0: must be a number > 0"),
            ("teacher:\n  train:\n    lrr: 0", ":3: teacher.train.lrr: unknown key, did you mean 'lr'?"),
            (
                "teacher:\n  train:\n    schedule: step",
                ":3: teacher.train.decay_epochs: a step schedule needs decay_epochs, for example [150, 180, 210]",
            ),
            ("teacher: {nam: x}", ":1: teacher.nam: unknown key, did you mean 'name'?"),
            ("data: digit", ":1: data = 'digit': there is no such data set, did you mean 'digits'?"),
            ("\ndata:\n  name: digit", ":3: data = 'digit': there is no such data set, did you mean 'digits'?"),
            ("student: resnet9", ":1: student = 'resnet9': there is no such model, did you mean 'resnet8'?"),
            ("teacher: resnet9", ":1: teacher = 'resnet9': there is no such model, did you mean 'resnet8'?"),
            ("student: 'no_such_1:x'", ":1: student = 'no_such_1:x': cannot be imported: No module named"),
            ("method: kdd", ":1: method.host = 'kdd': there is no such method host, did you mean 'kd'?"),
            ("method: {host: kdd}", ":1: method.host = 'kdd': there is no such method host, did you mean 'kd'?"),
            ("method: {host: {name: [1]}}", ":1: method.host.name = [1]: must be a string"),
            ("method: {host: {name: null}}", ":1: method.host.name = None: must be a string"),
            ("method: 'akd.errors:near'", ":1: method.host = 'akd.errors:near': has no config class"),
            (
                "method:\n  host:\n    name: kd\n    temprature: 3",
                ":4: method.host.temprature: unknown key, did you mean 'temperature'?",
            ),
            ("method: {host: {temperature: 0}}", ":1: method.host.temperature = 0: must be a number > 0 and <= 100"),
            (
                "method: {host: {name: none, temperature: 4}}",
                ":1: method.host.temperature: unknown key, the host is none, allowed are name",
            ),
            ("method: {veiws: 1}", ":1: method.veiws: unknown key, did you mean 'views'?"),
            (
                "search: {sampler: tpee}",
                ":1: search.sampler = 'tpee': must be one of cmaes, gp, grid, nsga2, qmc, random, tpe, did you mean",
            ),
            (
                "search: {scheduler: none, grace: 2}",
                ":1: search.grace = 2: has no effect while scheduler is 'none'; it needs scheduler: asha",
            ),
            ("data: {validation: 1}", ":1: data.validation = 1: must be a number > 0 and < 1"),
            ("train: 3", ":1: train = 3: must hold keys and values"),
            ("method: {host: 3}", ":1: method.host = 3: must be a name, or hold keys and values"),
            ("data: [digits]", ":1: data = ['digits']: must be a name, or hold keys and values"),
            ("teacher: {train: 3}", ":1: teacher.train = 3: must hold keys and values"),
            ("space: 3", ":1: space = 3: must hold keys and values"),
        ],
    )
    def test_in_a_file(self, tmp_path: Path, text: str, message: str) -> None:
        path = write(tmp_path, text)
        assert error(load, path, {}).startswith(f"{path}{message}")

    def test_a_mistake_in_code_has_no_place(self) -> None:
        assert error(resolve, {"train": {"lr": 0}}) == "train.lr = 0: must be a number > 0"

    def test_settings_without_effect_pass_where_a_search_proposes_them(self) -> None:
        assert resolve({"train": {"decay_factor": 0.5}}, strict=False).train.decay_factor == 0.5


class TestOverrides:
    def test_beat_the_file_which_beats_the_defaults(self, tmp_path: Path) -> None:
        path = write(tmp_path, "train: {lr: 0.3, epochs: 7}")
        got = load(path, {"train.lr": 0.4, "method.host.temperature": 2, "teacher.train.epochs": 3}).train
        assert (got.lr, got.epochs, got.batch_size) == (0.4, 7, 64)

    @pytest.mark.parametrize(
        "overrides",
        [
            {"data": "cifar100", "data.subset": 3000},
            {"data.subset": 3000, "data": "cifar100"},
            {"data.name": "cifar100", "data.subset": 3000},
        ],
    )
    @pytest.mark.parametrize("text", [None, "data: digits", "data: {name: digits, subset: 5}", "train: {lr: 1}"])
    def test_a_name_and_settings_beside_it_in_any_order(
        self, tmp_path: Path, text: str | None, overrides: dict[str, Any]
    ) -> None:
        got = load(None if text is None else write(tmp_path, text), overrides)
        assert (got.data.name, got.data.subset) == ("cifar100", 3000)

    @pytest.mark.parametrize("text", [None, "method: none", "method: {host: {name: none}}"])
    def test_method_and_its_settings(self, tmp_path: Path, text: str | None) -> None:
        path = None if text is None else write(tmp_path, text)
        assert load(path, {"method": "kd", "method.host.weight": 3}).method.host == KDConfig(weight=3.0)
        assert load(path, {"method.host": "kd", "method.host.weight": 3}).method.host == KDConfig(weight=3.0)

    def test_another_method_drops_the_settings_of_the_one_before(self, tmp_path: Path) -> None:
        path = write(tmp_path, "method: {host: {name: kd, temperature: 2}}")
        assert load(path, {"method": "none"}).method.host_name == "none"
        assert load(path, {"method.host": "none"}).method.host_name == "none"

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("train.lr", -1, "--train.lr: train.lr = -1: must be a number > 0"),
            ("trian.lr", 1, "--trian.lr: trian: unknown key, did you mean 'train'?"),
            ("train.lrr", 1, "--train.lrr: train.lrr: unknown key, did you mean 'lr'?"),
            ("train", 3, "--train: train = 3: must hold keys and values"),
            ("train.lr.x", 3, "--train.lr.x: train.lr = {'x': 3}: must be a number > 0"),
            ("student", "resnet9", "--student: student = 'resnet9': there is no such model, did you mean 'resnet8'?"),
            ("method", "kdd", "--method: method.host = 'kdd': there is no such method host, did you mean 'kd'?"),
            ("space", 3, "--space: space = 3: must hold keys and values"),
        ],
    )
    def test_mistakes_name_the_flag(self, key: str, value: Any, message: str) -> None:
        assert error(load, None, {key: value}) == message

    def test_flag_as_typed(self) -> None:
        assert error(load, None, {"train.epochs": 0}, {"train.epochs": "--epochs"}).startswith("--epochs: train.epochs")

    def test_a_key_below_a_value(self, tmp_path: Path) -> None:
        path = write(tmp_path, "train: {lr: 1}")
        want = "--train.lr.x: train.lr.x = 3: train.lr holds a value, not keys"
        assert error(load, path, {"train.lr.x": 3}) == want

    def test_the_file_is_not_touched(self, tmp_path: Path) -> None:
        path = write(tmp_path, "method: kd\nspace: {train.lr: {low: 1}}\n")
        load(path, {"method": "none", "space.train.lr": 0.1})
        assert path.read_text() == "method: kd\nspace: {train.lr: {low: 1}}\n"


class TestSpaceOverrides:
    SPACE = "student: resnet8\nspace:\n  train.lr: {type: float, low: 0.1, high: 1}\n"

    def test_a_searched_key_cannot_be_set_beside_the_space(self, tmp_path: Path) -> None:
        path = write(tmp_path, self.SPACE)
        assert error(load, path, {"train.lr": 0.2}) == (
            f"--train.lr: train.lr = 0.2: is searched by {path}:3; to fix it there say --space.train.lr 0.2"
        )

    def test_fixing_it_in_the_space(self, tmp_path: Path) -> None:
        got = load(write(tmp_path, self.SPACE), {"space.train.lr": 0.2, "train.epochs": 3})
        assert got.space == {"train.lr": 0.2}
        assert got.train.epochs == 3

    @pytest.mark.parametrize("text", ["student: resnet8", "space:", "space: {}"])
    def test_a_key_the_file_does_not_search(self, tmp_path: Path, text: str) -> None:
        got = load(write(tmp_path, text), {"space.method.host.temperature": {"type": "int", "low": 1, "high": 8}})
        assert got.space == {"method.host.temperature": {"type": "int", "low": 1, "high": 8}}

    def test_a_space_that_is_no_mapping(self, tmp_path: Path) -> None:
        path = write(tmp_path, "space: 3")
        assert error(load, path, {"space.train.lr": 1}) == f"{path}:1: space = 3: must hold keys and values"


class TestWithValues:
    base = resolve({"data": {"subset": 100}, "method": {"host": {"name": "kd", "temperature": 2.0}}})

    def test_sets_and_leaves_the_rest(self) -> None:
        got = self.base.with_values({"train.lr": 0.5, "method.host.weight": 3, "teacher.train.epochs": 2})
        assert (got.train.lr, got.teacher.train.epochs) == (0.5, 2)
        assert got.method.host == KDConfig(temperature=2.0, weight=3.0)
        assert got.data == self.base.data
        assert self.base.train.lr == TrainConfig().lr

    def test_nothing_to_set(self) -> None:
        assert self.base.with_values({}) == self.base

    @pytest.mark.parametrize("order", [1, -1])
    def test_another_host_starts_from_its_own_defaults(self, order: int) -> None:
        none = self.base.with_values({"method.host.name": "none"})
        assert none.method.host_name == "none"
        values = dict(list({"method.host.name": "kd", "method.host.weight": 3}.items())[::order])
        assert none.with_values(values).method.host == KDConfig(weight=3.0)

    def test_same_host_keeps_its_settings(self) -> None:
        assert self.base.with_values({"method.host.name": "kd"}).method.host.temperature == 2.0

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"train.lr": -1}, "train.lr = -1: must be a number > 0"),
            ({"train.lrr": 1}, "train.lrr: unknown key, did you mean 'lr'?"),
            (
                {"method.host.name": "none", "method.host.weight": 3},
                "method.host.weight: unknown key, the host is none, allowed are name",
            ),
            ({"method.host.name": "kdd"}, "method.host = 'kdd': there is no such method host, did you mean 'kd'?"),
        ],
    )
    def test_mistakes(self, values: dict[str, Any], message: str) -> None:
        assert error(self.base.with_values, values) == message

    def test_places_are_kept(self, tmp_path: Path) -> None:
        path = write(tmp_path, "train:\n  lr: 0.5\n")
        got: Experiment = load(path, {}).with_values({"train.epochs": 2})
        assert error(got.with_values, {"train.lr": -1}) == f"{path}:2: train.lr = -1: must be a number > 0"
