"""What an earlier study's configurations become in a new one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_study import KD, make
from test_searcher import CONDITIONAL, FLAT, Killed, Session, count_writes, experiment, folders_of, trials_of

from akd import study as study_module
from akd import warm
from akd.config import resolve
from akd.errors import AkdError, ExperimentError
from akd.folder import RUNNING, Run
from akd.mirror import Mirror, open_mirror
from akd.report import facts
from akd.result import StudyResult
from akd.searcher import open_study, ranking
from akd.space import Space, parse
from akd.warm import First, Plan, fit, plan


def space_of(**keys: Any) -> Space:
    return parse(resolve({"train": {"epochs": 30}, "space": {key.replace("__", "."): v for key, v in keys.items()}}))


LR = {"type": "float", "low": 0.01, "high": 0.1, "log": True}


class TestFit:
    def test_taken_as_it_is(self) -> None:
        space = space_of(train__lr=LR, train__batch_size={"type": "int", "low": 16, "high": 64, "step": 16})
        values = {"train.lr": 0.05, "train.batch_size": 48}
        found = fit(values, space)
        assert (found.values, found.clipped, found.drawn, found.dropped) == (values, [], [], [])
        assert isinstance(found.values["train.batch_size"], int)

    @pytest.mark.parametrize(
        ("spec", "value", "becomes"),
        [
            (LR, 0.5, 0.1),
            (LR, 0.0001, 0.01),
            (LR, 1, 0.1),
            ({"type": "float", "low": 0.0, "high": 0.9, "step": 0.3}, 0.4, 0.3),
            ({"type": "float", "low": 0.1, "high": 0.95, "step": 0.3}, 5.0, 0.7),  # the last step, not the end
            ({"type": "float", "low": 0.5, "high": 0.5}, 0.7, 0.5),
        ],
    )
    def test_a_number_outside_comes_in(self, spec: dict[str, Any], value: float, becomes: float) -> None:
        key = "train.lr" if spec is LR else "train.momentum"
        found = fit({key: value}, space_of(**{key: spec, "train.ema": {"choices": [0.5, 0.9]}}))
        assert found.values == {key: pytest.approx(becomes, rel=1e-12)}
        assert found.clipped == [key]
        assert found.drawn == ["train.ema"]
        assert isinstance(found.values[key], float)

    @pytest.mark.parametrize(
        ("value", "becomes", "clipped"), [(20, 16, True), (32.0, 32, False), (500, 48, True), (3, 16, True)]
    )
    def test_whole_numbers(self, value: float, becomes: int, clipped: bool) -> None:
        found = fit(
            {"train.batch_size": value}, space_of(train__batch_size={"type": "int", "low": 16, "high": 60, "step": 16})
        )
        assert found.values == {"train.batch_size": becomes}
        assert isinstance(found.values["train.batch_size"], int)
        assert bool(found.clipped) is clipped

    @pytest.mark.parametrize("value", ["auto", None, True, [1], math.nan, math.inf, {"a": 1}])
    def test_what_is_no_number_is_drawn(self, value: Any) -> None:
        space = space_of(train__lr=LR, train__nesterov={"choices": [True, False]})
        found = fit({"train.lr": value, "train.nesterov": True}, space)
        assert found.values == {"train.nesterov": True}
        assert found.drawn == ["train.lr"]

    def test_a_value_that_is_no_choice_leaves_the_configuration_out(self) -> None:
        space = space_of(method__host__name={"choices": ["kd", "dkd"]}, train__lr=LR)
        assert (
            fit({"method.host.name": "mlkd", "train.lr": 0.05}, space).refused == "method.host.name = mlkd is no choice"
        )
        # 1 is not true, though Python says they are equal.
        assert fit({"train.nesterov": 1}, space_of(train__nesterov={"choices": [True, False]})).refused is not None

    def test_lists(self) -> None:
        space = space_of(train__schedule="step", train__decay_epochs={"choices": [[3, 6], [6, 8]]})
        found = fit({"train.decay_epochs": [6, 8], "train.schedule": "cosine"}, space)
        assert found.values == {"train.decay_epochs": [6, 8]}
        assert space.told(found.values) == {"train.decay_epochs": 1}

    def test_what_the_space_lacks_is_left_out_and_what_it_adds_is_drawn(self) -> None:
        space = space_of(train__lr=LR, train__momentum={"type": "float", "low": 0.5, "high": 0.9}, train__ema=0.9)
        found = fit({"train.lr": 0.05, "train.weight_decay": 1e-4, "train.ema": 0.5}, space)
        assert (found.values, found.drawn, found.dropped) == (
            {"train.lr": 0.05},
            ["train.momentum"],
            ["train.weight_decay"],
        )

    def test_conditions(self) -> None:
        when = {"train.schedule": ["step"]}
        keys = {"train.schedule": {"choices": ["cosine", "step"]}, "train.lr": LR}
        keys["train.decay_epochs"] = {"choices": [[3, 6]], "when": when}
        keys["train.decay_factor"] = {"type": "float", "low": 0.1, "high": 0.5, "when": when}
        space = space_of(**keys)
        closed = fit({"train.schedule": "cosine", "train.decay_factor": 0.3}, space)
        assert closed.values == {"train.schedule": "cosine"}  # and nothing is said of what does not exist beside it
        assert closed.drawn == ["train.lr"]
        opened = fit({"train.schedule": "step", "train.lr": 0.05}, space)
        assert opened.drawn == ["train.decay_epochs", "train.decay_factor"]
        # The schedule is drawn: if it comes out as steps, their factor is the earlier one.
        unknown = fit({"train.lr": 0.05, "train.decay_factor": 0.3}, space)
        assert unknown.values == {"train.lr": 0.05, "train.decay_factor": 0.3}

    def test_nothing_in_common(self) -> None:
        assert fit({"train.ema": 0.5}, space_of(train__lr=LR)).refused == "no searched key is in both"


NARROW = {
    "train.lr": {"type": "float", "low": 0.09, "high": 0.11},
    "method.host.weight": KD["space"]["method.host.weight"],
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    make(tmp_path / "old", trials=8)
    return tmp_path


def planned(output: Path, *asked: str | Path, space: dict[str, Any] = NARROW, trials: int = 16) -> Plan:
    return plan(asked, parse(resolve(KD | {"space": space})), trials, Mirror(None, output))


class TestPlan:
    def test_the_best_come_first_the_winner_of_all(self, output: Path) -> None:
        ranked = [run.number for run, _, _ in ranking(output / "old")]
        found = planned(output, "old:5", space=KD["space"])
        assert [f.source for f in found.first] == [f"old trial {n}" for n in ranked[:5]]
        by_number = {run.number: run.parameters for run, _, _ in ranking(output / "old")}
        assert [f.values for f in found.first] == [by_number[n] for n in ranked[:5]]
        result = StudyResult.read(output / "old")
        assert result is not None
        result.best_trial["number"] = ranked[2]  # as where several were trained again before one was named
        result.write(output / "old")
        found = planned(output, "old:3", space=KD["space"])
        assert [f.source for f in found.first] == [f"old trial {n}" for n in (ranked[2], ranked[0], ranked[1])]

    @pytest.mark.parametrize(("trials", "count"), [(1, 1), (4, 1), (7, 1), (12, 3), (32, 7), (1000, 7)])
    def test_how_many_by_default(self, output: Path, trials: int, count: int) -> None:
        assert len(planned(output, "old", space=KD["space"], trials=trials).first) == count  # one of the eight failed

    def test_told_in_one_line(self, output: Path) -> None:
        space = NARROW | {"train.momentum": {"type": "float", "low": 0.5, "high": 0.9}}
        found = planned(output, "old:4", space=space)
        (line,) = found.lines
        clipped = sum(f.values["train.lr"] in (0.09, 0.11) for f in found.first)
        assert clipped
        assert line == (
            f"4 of 4 configurations of old fit, tried first; train.lr clipped in {clipped}; train.momentum drawn in 4; "
            "train.decay_epochs, train.schedule left out"
        )
        assert found.words() == "4 of old"

    def test_the_same_after_clipping_is_tried_once(self, output: Path) -> None:
        space = {"train.lr": {"type": "float", "low": 1.0, "high": 2.0}}
        found = planned(output, "old:4", space=space)
        assert [f.values for f in found.first] == [{"train.lr": 1.0}]
        assert "1 of 4 configurations of old fit" in found.lines[0]
        assert "3 the same as another" in found.lines[0]

    def test_several_studies(self, output: Path) -> None:
        make(output / "older", KD | {"search": {"trials": 5, "champion_seeds": 3}, "space": NARROW}, trials=5)
        found = planned(output, "old:2", "older:3")
        assert dict(found.counts) == {"old": 2, "older": 3}
        assert [f.source.split()[0] for f in found.first] == ["old"] * 2 + ["older"] * 3
        assert [len(planned(output, "old", "older", trials=16).first)] == [4]  # half of a quarter each

    def test_a_path_and_a_kept_list(self, output: Path, tmp_path: Path) -> None:
        elsewhere = Mirror(None, tmp_path / "none")
        space = parse(resolve(KD | {"space": NARROW}))
        by_path = plan([output / "old"], space, 16, elsewhere)
        assert by_path.first == planned(output, "old").first
        (tmp_path / "new").mkdir()
        by_path.keep(tmp_path / "new")
        assert warm.read(tmp_path / "new") == by_path
        again = plan([tmp_path / "new" / warm.FILE], space, 16, elsewhere)
        assert again.first == by_path.first  # the report's way to repeat a study whose source is gone
        one = plan([f"{tmp_path}/new/{warm.FILE}:1"], space, 16, elsewhere)
        assert one.first == by_path.first[:1]
        Plan().keep(tmp_path / "new")
        assert not (tmp_path / "new" / warm.FILE).exists()

    def test_in_the_storage_alone(self, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AKD_STORAGE", raising=False)
        shared = tmp_path / "shared"
        shared.mkdir()
        open_mirror(f"file://{shared}", output).up_all(output / "old")
        there = plan(
            ["old"], parse(resolve(KD | {"space": NARROW})), 16, open_mirror(f"file://{shared}", tmp_path / "x")
        )
        assert there.first == planned(output, "old").first
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (["odl"], ["warm_start = 'odl'", "there is no study of this name in", "did you mean 'old'?"]),
            (["nothing/like/it"], ["there is no study of this name in"]),
            (["old:0"], ["'old:0'", "from 1 to 16 (search.trials)"]),
            (["old:17"], ["'old:17'", "from 1 to 16 (search.trials)"]),
            (["old:many"], ["'old:many'", "after the ':' must stand how many"]),
            (["old:-1"], ["from 1 to 16"]),
            (["old:"], ["'old:'", "from 1 to 16"]),
            ([""], ["must name a study"]),
            ([":3"], ["must name a study"]),
            (["old:9", "old:8"], ["'old:9 old:8'", "more configurations than there are trials"]),
            (["alone"], ["is a single run: only studies have configurations"]),
            (["young"], ["has no trial that finished or was stopped"]),
            (["broken"], ["broken/run.json is damaged"]),
        ],
    )
    def test_mistakes(self, output: Path, asked: list[str], words: list[str]) -> None:
        for name, run in (("alone", Run("single", "alone")), ("young", Run("study", "young"))):
            (output / name).mkdir()
            run.write(output / name)
        (output / "broken").mkdir()
        (output / "broken" / "run.json").write_text("{", encoding="utf-8")
        with pytest.raises(ExperimentError) as error:
            planned(output, *asked)
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)

    def test_nothing_fits(self, output: Path) -> None:
        with pytest.raises(ExperimentError) as error:
            planned(output, "old:3", space={"train.ema": {"choices": [0.5, 0.9]}})
        assert str(error.value) == (
            "warm_start = 'old': none of its 3 best configurations fits the space: no searched key is in both in 3"
        )
        with pytest.raises(ExperimentError, match=r"train.schedule = (step|cosine) is no choice in [12]"):
            planned(output, "old:2", space={"train.schedule": {"choices": ["constant"]}})


class TestSearch:
    """A study that tries a list first, driven by hand."""

    FIRST = (
        First("old trial 3", {"train.lr": 0.1, "method.host.name": "kd", "method.host.weight": 1.5}),
        First("old trial 1", {"train.schedule": "step", "train.decay_epochs": [1, 2]}),
    )

    def test_the_list_first_then_the_sampler(self, tmp_path: Path) -> None:
        e = experiment(CONDITIONAL, trials=5, seed=4)
        Session(tmp_path, e, first=self.FIRST).run()
        runs = [Run.read(tmp_path / "trials" / f"{k:05d}") for k in range(5)]
        for run, first in zip(runs, self.FIRST, strict=False):
            assert run is not None
            assert first.values.items() <= run.parameters.items()
            assert run.tags == {"warm_start": first.source}
            assert parse(e).parameters[0].key in run.parameters  # what was missing was drawn
        assert [r.tags for r in runs[2:] if r] == [{}] * 3
        attributes = [t.user_attrs.get("warm_start") for t in open_study(tmp_path / "optuna.log", "s").trials]
        assert attributes == ["old trial 3", "old trial 1", None, None, None]

    def test_what_is_drawn_depends_on_seed_and_number_alone(self, tmp_path: Path) -> None:
        found = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            Session(
                tmp_path / name,
                experiment(FLAT, trials=3, seed=seed),
                controls=False,
                first=[First("old trial 0", {"method.host.weight": 2.0})],
            ).run()
            found.append([t[2] for t in trials_of(tmp_path / name)])
        assert found[0] == found[1]
        assert found[0][0]["method.host.weight"] == found[2][0]["method.host.weight"] == 2.0
        assert found[0][0]["train.lr"] != found[2][0]["train.lr"]

    def test_killed_at_any_write_equals_undisturbed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        e = experiment(CONDITIONAL, trials=4, seed=2)
        with monkeypatch.context() as patch:
            count = count_writes(patch, math.inf)
            Session(tmp_path / "whole", e, first=self.FIRST).run()
        for moment in range(0, count[0], 3):
            folder = tmp_path / f"cut{moment}"
            with monkeypatch.context() as patch:
                count_writes(patch, moment)
                with pytest.raises(Killed):
                    Session(folder, e, first=self.FIRST).run()
            Session(folder, e, first=self.FIRST).run()
            assert trials_of(folder) == trials_of(tmp_path / "whole"), f"killed at write {moment}"
            assert folders_of(folder) == folders_of(tmp_path / "whole")
            tags = [r.tags for k in range(4) if (r := Run.read(folder / "trials" / f"{k:05d}"))]
            assert tags == [{"warm_start": f.source} for f in self.FIRST] + [{}, {}]

    def test_a_lost_journal_and_a_trial_enqueued_by_hand(self, tmp_path: Path) -> None:
        e = experiment(CONDITIONAL, trials=4, seed=2)
        (tmp_path / "s").mkdir()
        open_study(tmp_path / "s" / "optuna.log", "s").enqueue_trial({"train.lr": 0.3})
        session = Session(tmp_path / "s", e, controls=False, first=self.FIRST)
        for _ in range(2):
            started = session.start()
            assert started is not None
            list(session.epochs(*started))
        (tmp_path / "s" / "optuna.log").unlink()
        Session(tmp_path / "s", e, controls=False, first=self.FIRST).run()
        tags = [r.tags for k in range(4) if (r := Run.read(tmp_path / "s" / "trials" / f"{k:05d}"))]
        assert tags == [{}, {"warm_start": "old trial 3"}, {"warm_start": "old trial 1"}, {}]


def test_a_damaged_list_is_told(tmp_path: Path) -> None:
    (tmp_path / warm.FILE).write_text('{"first": [3]}', encoding="utf-8")
    with pytest.raises(AkdError, match=r"warm_start.json is damaged, the study cannot go on"):
        warm.read(tmp_path)


def test_the_report_says_how_to_repeat_it(output: Path) -> None:
    study = output / "old"
    assert "tried first" not in facts.gather(study).reproduce
    Plan((First("older trial 2", {"train.lr": 0.1}),), ("a line",), {"older": 1}).keep(study)
    told = facts.gather(study).reproduce
    assert told["command"] == "akd search experiment.yaml --name old-again --warm-start warm_start.json"
    assert told["tried first"] == "1 of older"


def test_what_a_killed_start_left_is_not_taken_over(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the study was there: the same name starts afresh, without the list of then."""
    monkeypatch.setattr(study_module.run_folder, "create", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    small = KD | {"space": NARROW}
    with pytest.raises(KeyboardInterrupt):
        study_module.search(small, name="new", output=output, warm_start="old:2")
    assert len(json.loads((output / "new" / warm.FILE).read_text())["first"]) == 2
    with pytest.raises(KeyboardInterrupt):
        study_module.search(small, name="new", output=output)
    assert not (output / "new" / warm.FILE).exists()
    assert RUNNING not in [p.name for p in (output / "new").iterdir()]
