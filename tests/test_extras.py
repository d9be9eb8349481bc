"""``method.extra`` and ``method.normalise`` as they are written, overridden, searched and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from akd.config import load, resolve
from akd.errors import ExperimentError
from akd.methods.dist import DISTConfig
from akd.methods.dkd import DKDConfig
from akd.methods.kd import KDConfig
from akd.space import parse
from akd.summary import closing_title
from akd.terminal import short_names
from akd.tracked import method_of, params_of


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestForms:
    @pytest.mark.parametrize(
        ("given", "want"),
        [
            ("dist", {"dist": DISTConfig()}),
            (["dist"], {"dist": DISTConfig()}),
            ([{"name": "dist"}], {"dist": DISTConfig()}),
            ({"dist": None}, {"dist": DISTConfig()}),
            ({"dist": {}}, {"dist": DISTConfig()}),
            ({"dist": {"name": "dist"}}, {"dist": DISTConfig()}),
            (["dkd", {"name": "dist", "beta": 2}], {"dkd": DKDConfig(), "dist": DISTConfig(beta=2.0)}),
            ({"dkd": {"alpha": 3}, "dist": "dist"}, {"dkd": DKDConfig(alpha=3.0), "dist": DISTConfig()}),
            ({"dkd": {"name": "none"}, "dist": "none"}, {}),
            ([], {}),
            (None, {}),
        ],
        ids=str,
    )
    def test_spellings(self, given: Any, want: dict[str, Any]) -> None:
        got = resolve({"method": {"host": "kd", "extra": given}}).method
        assert list(got.extra.items()) == list(want.items())
        assert got.host == KDConfig()

    def test_reads_back(self, tmp_path: Path) -> None:
        tree = {"method": {"host": "dkd", "extra": ["kd", {"name": "dist", "gamma": 3}], "normalise": True}}
        whole = resolve(tree)
        assert load(write(tmp_path, whole.to_yaml()), {}) == whole
        assert load(write(tmp_path, whole.to_yaml()), {}, strict=False) == whole

    def test_words(self) -> None:
        method = resolve({"method": {"host": "dkd", "views": "angular_kd", "extra": ["dist", "mlkd"]}}).method
        assert method.title == "angular_kd over dkd + dist + mlkd"
        assert method.name == "angular_kd"
        assert method.needs == {"logits", "embedding"}
        assert method.without_warmup().extra == method.extra
        alone = resolve({"method": {"host": "dkd", "extra": "kd", "normalise": True}}).method
        assert alone.title == "dkd + kd, normalised"
        assert resolve({"method": {"host": "dkd"}}).method.title == "dkd"


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{host: kd, extra: [dsit]}", "method.extra.dsit = 'dsit': there is no such method host, did you mean"),
            ("{host: kd, extra: [kd]}", "method.extra = 'kd': is the host already: its weights are under method.host"),
            ("{extra: kd}", "method.extra = 'kd': is the host already"),
            ("{host: kd, extra: [dkd, dkd]}", "method.extra = 'dkd': names a host twice"),
            ("{host: kd, extra: none}", "method.extra = 'none': learns from no teacher, so it has nothing to add"),
            (
                "{host: none, extra: [dkd]}",
                "method.extra = 'dkd': has no effect over none, which learns from no teacher; write method.host: dkd",
            ),
            ("{host: kd, extra: [angular_kd]}", "method.extra.angular_kd = 'angular_kd': is no method host; write"),
            ("{host: kd, extra: [3]}", "method.extra = 3: must be names of hosts, or settings with a name"),
            ("{host: kd, extra: [{alpha: 3}]}", "method.extra = {'alpha': 3}: must be names of hosts"),
            ("{host: kd, extra: {dkd: 3}}", "method.extra.dkd = 3: must hold keys and values"),
            ("{host: kd, extra: {dkd: {name: dist}}}", "method.extra.dkd.name = 'dist': must be dkd or none"),
            ("{host: kd, extra: {dkd: {alhpa: 3}}}", "method.extra.dkd.alhpa: unknown key, did you mean 'alpha'?"),
            ("{host: kd, extra: {dkd: {alpha: -3}}}", "method.extra.dkd.alpha = -3: must be a number >= 0"),
            ("{host: kd, extra: {dkd: {name: none, alpha: 3}}}", "method.extra.dkd.alpha: has no effect beside name"),
            (
                "{host: kd, extra: [{name: dkd, ce_weight: 3}]}",
                "method.extra.dkd.ce_weight = 3.0: has no effect: hard labels are the host's, method.host.ce_weight",
            ),
            ("{host: kd, normalise: 1}", "method.normalise = 1: must be true or false"),
            ("{host: none, normalise: true}", "method.normalise = True: has no effect over none, which learns from"),
        ],
    )
    def test_one_line(self, tmp_path: Path, text: str, message: str) -> None:
        path = write(tmp_path, f"method: {text}")
        with pytest.raises(ExperimentError) as caught:
            load(path, {})
        assert str(caught.value).startswith(f"{path}:1: {message}")
        assert "\n" not in str(caught.value)


class TestOverrides:
    def test_keys_below_a_name(self, tmp_path: Path) -> None:
        path = write(tmp_path, "method: {host: kd, extra: [dkd, dist]}")
        got = load(path, {"method.extra.dkd.alpha": 3, "method.extra.dist.name": "none"}).method
        assert got.extra == {"dkd": DKDConfig(alpha=3.0)}
        assert load(None, {"method.extra.dkd.alpha": 3}).method.extra == {"dkd": DKDConfig(alpha=3.0)}
        assert load(path, {"method.extra.dkd": "none"}).method.extra == {"dist": DISTConfig()}
        assert load(path, {"method.normalise": True}).method.normalise

    def test_the_whole(self, tmp_path: Path) -> None:
        path = write(tmp_path, "method: {host: kd, extra: [dkd]}")
        assert load(path, {"method.extra": "dist"}).method.extra == {"dist": DISTConfig()}
        assert list(load(path, {"method.extra": ["dist", "mlkd"]}).method.extra) == ["dist", "mlkd"]
        assert load(path, {"method.extra": []}).method.extra == {}
        assert load(path, {"method.extra": ["dist"], "method.extra.dist.beta": 2}).method.extra["dist"].beta == 2
        assert load(path, {"method": "kd"}).method.extra == {}

    def test_a_mistake_names_the_flag(self) -> None:
        with pytest.raises(
            ExperimentError, match=r"^--method\.extra\.dkd\.alhpa: method\.extra\.dkd\.alhpa: unknown key"
        ):
            load(None, {"method.extra.dkd.alhpa": 3})


class TestSearch:
    SPACE: dict[str, Any] = {  # noqa: RUF012 - read only
        "method.host.name": {"choices": ["kd", "dkd"]},
        "method.extra.dist.name": {"choices": ["dist", "none"]},
        "method.extra.dist.weight": {
            "type": "float",
            "low": 0.5,
            "high": 2,
            "when": {"method.extra.dist.name": "dist"},
        },
        "method.normalise": {"choices": [True, False]},
    }

    def test_an_extra_comes_and_goes(self) -> None:
        experiment = resolve({"method": {"host": "kd", "extra": {"dist": {"beta": 3}}}, "space": self.SPACE})
        space = parse(experiment)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        seen = set()
        for _ in range(60):
            values = space(study.ask())
            method = experiment.with_values(values).method
            seen.add((method.host_name, *method.extra, method.normalise))
            if values["method.extra.dist.name"] == "dist":
                assert method.extra["dist"] == DISTConfig(beta=3.0, weight=values["method.extra.dist.weight"])
        assert len(seen) == 8

    def test_one_that_comes_starts_from_its_defaults(self) -> None:
        plain = resolve({"method": "kd"})
        values = {"method.extra.dist.name": "dist", "method.extra.dist.weight": 2.0}
        assert plain.with_values(values).method.extra == {"dist": DISTConfig(weight=2.0)}
        beside = resolve({"method": {"host": "kd", "extra": {"dist": {"beta": 3}}}})
        assert beside.with_values({"method.extra.dist.name": "none"}).method.extra == {}
        assert beside.with_values({"method.extra.dist.name": "dist"}).method.extra["dist"].beta == 3

    def test_lists_as_choices(self) -> None:
        choices = {"choices": [[], ["dist"], ["dist", "dkd"]]}
        experiment = resolve({"method": "kd", "space": {"method.extra": choices}})
        assert len(parse(experiment).parameters[0].choices) == 3
        assert list(experiment.with_values({"method.extra": ["dist", "dkd"]}).method.extra) == ["dist", "dkd"]
        both = {"method.extra": ["dist"], "method.extra.dist.beta": 2.0}
        assert experiment.with_values(both).method.extra == {"dist": DISTConfig(beta=2.0)}

    def test_mistakes(self) -> None:
        tree = {"method": "kd", "space": {"method.extra.dsit.weight": {"type": "float", "low": 1, "high": 2}}}
        with pytest.raises(ExperimentError, match=r"space\.method\.extra\.dsit\.weight.*did you mean 'dist'"):
            parse(resolve(tree))
        tree["space"] = {
            "method.extra.dkd.name": {"choices": ["dkd", "none"]},
            "method.host.name": {"choices": ["dkd"]},
        }
        with pytest.raises(ExperimentError, match="is the host already"):
            parse(resolve(tree))


class TestElsewhere:
    def test_tracker_and_terminal(self) -> None:
        tree = {"method": {"host": "kd", "views": "angular_kd", "extra": {"dist": {"beta": 2}}, "normalise": True}}
        experiment = resolve(tree)
        config = experiment.to_dict()
        assert method_of(config) == experiment.method.title == "angular_kd over kd + dist, normalised"

        class Trial:
            kind, parameters = "trial", {"method.extra.dist.weight": 0.5}

        params = params_of(config, Trial())  # type: ignore[arg-type]
        assert params["method.normalise"] == "True"
        assert (params["method.extra.dist.beta"], params["method.extra.dist.weight"]) == ("2.0", "0.5")
        old = {**config, "method": {"host": {"name": "kd"}, "views": None}}  # written before there were extras
        assert method_of(old) == "kd"
        names = short_names(["method.host.weight", "method.extra.dist.weight"])
        assert list(names.values()) == ["host.weight", "dist.weight"]

    def test_the_closing_title_is_the_winners(self) -> None:
        class Result:
            best_trial: dict[str, Any] = {"parameters": {"method.host.name": "dkd", "method.extra.dist.name": "dist"}}  # noqa: RUF012

        title = closing_title(resolve({"method": "kd", "student": "resnet8"}), Result())  # type: ignore[arg-type]
        assert title == "winner: dkd + dist, resnet8"
