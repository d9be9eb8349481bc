"""Methods at equal budget: what may differ, whose controls are whose, and what the table says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import made_study
import pytest
import simulated
from scipy import stats

from akd import compare, compare_table, study
from akd import folder as run_folder
from akd.champion import final_seeds
from akd.config import Experiment, resolve
from akd.errors import ExperimentError, Interrupted
from akd.folder import COMPLETE, Run
from akd.report import verify
from akd.result import StudyResult, paired_gain, scores
from akd.summary import costs


def method(name: str, **more: Any) -> Experiment:
    tree = {**made_study.KD, "method": name, "space": {"train.lr": {"type": "float", "low": 0.01, "high": 0.3}}}
    return resolve({**tree, **more})


class TestEqual:
    def test_the_method_and_its_space_may_differ(self) -> None:
        one = method("kd", space={"train.lr": {"type": "float", "low": 0.01, "high": 0.3}})
        other = method("dkd", train={"epochs": made_study.EPOCHS, "lr": 0.2})  # where it is searched
        compare.check_equal({"a": one, "b": other})

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"train": {"epochs": 8}}, "b: train.epochs = 8: is 9 in a; only the method and its space may differ"),
            ({"train": {"epochs": 9, "ema": 0.9}}, "give --train.ema to compare"),
            ({"data": "digits"}, "data.subset = None: is 300 in a"),
            ({"teacher": "wrn_16_2"}, "teacher.name = 'wrn_16_2': is 'wrn_16_1' in a"),
            ({"student": "resnet14"}, "student.name = 'resnet14'"),
            ({"search": {**made_study.KD["search"], "trials": 9}}, "search.trials = 9: is 8 in a"),
            ({"search": {**made_study.KD["search"], "confirm": 0}}, "search.confirm = 0: is 3 in a"),
        ],
    )
    def test_anything_else_is_refused(self, more: dict[str, Any], said: str) -> None:
        with pytest.raises(ExperimentError) as mistake:
            compare.check_equal({"a": method("kd"), "b": method("dkd", **more)})
        assert said in str(mistake.value)
        assert "\n" not in str(mistake.value)

    def test_one_is_too_few(self) -> None:
        with pytest.raises(ExperimentError, match="two spaces at least"):
            compare.check_equal({"a": method("kd")})

    def test_what_one_alone_tunes_is_said(self) -> None:
        ema = {"train.ema": {"type": "float", "low": 0.5, "high": 0.9}}
        found = compare.searched_alone({"a": method("kd"), "b": method("dkd", space={**method("kd").space, **ema})})
        assert found == ["train.ema is searched by b alone"]

    def test_labels(self) -> None:
        files = [Path("kd.yaml"), Path("x/my space.yaml"), Path("y/kd.yaml")]
        assert compare.labels(files) == ["kd-1", "my-space", "kd-2"]

    def test_nothing_is_written_after_a_mistake(self, tmp_path: Path) -> None:
        taken = tmp_path / "c-b"
        taken.mkdir()
        (taken / "x").write_text("")
        with pytest.raises(ExperimentError, match="exists already"):
            compare.compare({"a": method("kd"), "b": method("dkd")}, "c", output=tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["c-b"]

    def test_a_comparison_is_no_study(self, tmp_path: Path) -> None:
        run_folder.create(tmp_path / "c", method("kd"), Run("comparison", "c"))
        with pytest.raises(ExperimentError, match="akd compare --resume c"):
            study.resume("c", output=tmp_path)
        with pytest.raises(ExperimentError, match="akd compare --resume c"):
            study.check(method("kd"), name="c", output=tmp_path)
        made_study.make(tmp_path / "s")
        with pytest.raises(ExperimentError, match="is a study, no comparison"):
            compare.resume("s", output=tmp_path)


@pytest.fixture
def studies(tmp_path: Path) -> dict[str, Path]:
    """Three finished studies whose winners have known test accuracies."""
    levels = {"a": (0.90, 0.91, 0.92), "b": (0.95, 0.962, 0.97), "c": (0.90, 0.93, 0.91)}
    found = {}
    for label, values in levels.items():
        folder = made_study.make(tmp_path / f"n-{label}")
        result, e = StudyResult.read(folder), resolve(made_study.KD)
        assert result is not None
        tested = dict(zip(final_seeds(e), values, strict=True))
        changed = {"champion": {**result.champion, "test": asdict(scores(tested))}}
        StudyResult(**{**vars(result), **changed}).write(folder)
        found[label] = folder
    return found


class TestTable:
    def test_figures(self, studies: dict[str, Path]) -> None:
        table = compare_table.gather("n", studies, {})
        a, b, c = table["methods"]
        assert [m["label"] for m in table["methods"]] == ["a", "b", "c"]
        assert a["over_first"] is None
        wanted = stats.ttest_rel([95.0, 96.2, 97.0], [90.0, 91.0, 92.0]).confidence_interval(1 - 0.05 / 2)
        assert (b["over_first"]["low"], b["over_first"]["high"]) == pytest.approx(tuple(wanted))
        alone = StudyResult.read(studies["a"])
        assert alone is not None
        told = {int(s): v for s, v in alone.controls["none"]["test"]["accuracy"].items()}
        mine = dict(zip(told, (0.90, 0.93, 0.91), strict=True))
        assert c["over_alone"] == asdict(paired_gain(mine, told, 3))
        wanted = stats.ttest_rel([95.0, 96.2, 97.0], [90.0, 93.0, 91.0]).confidence_interval(1 - 0.05 / 3)
        over = table["best"]["over"]["c"]  # chosen afterwards: of three pairs
        assert (over["low"], over["high"]) == pytest.approx(tuple(wanted))
        low, high = stats.t.interval(0.95, 2, 0.91, stats.sem([0.90, 0.91, 0.92]))
        assert (a["test"]["low"], a["test"]["high"]) == pytest.approx((low, high))
        assert table["budget"] == {"equal": True, "epochs_asked": {"a": 72, "b": 72, "c": 72}}
        assert a["device_hours"]["search"] > 0

    def test_words(self, studies: dict[str, Path]) -> None:
        table = compare_table.gather("n", studies, {})
        assert compare_table.verdict(table) == (
            "b has the highest mean; it beats a beyond noise, and is not shown to beat c: more seeds would tell."
        )
        text = compare_table.markdown(table)
        assert "Equal budget: trials of 72 epochs" in text
        shown = table["methods"][1]["over_first"]
        assert f"+5.07 ({shown['low']:+.2f} to {shown['high']:+.2f}, beyond noise)" in text
        assert "student alone" in text
        assert max(map(len, compare_table.lines(table)[:6])) <= 96
        json.dumps(table, allow_nan=False)

    def test_a_budget_that_differs_is_said(self, studies: dict[str, Path]) -> None:
        for number in (6, 7):
            (studies["b"] / "trials" / f"{number:05d}" / "run.json").unlink()
        table = compare_table.gather("n", studies, {})
        assert compare_table.budget_words(table).startswith("NOT an equal budget: trials of 72 of a, 54 of b, 72 of c")

    def test_one_left_and_failures(self, studies: dict[str, Path]) -> None:
        table = compare_table.gather("n", {"a": studies["a"]}, {"b": "no trial finished"})
        assert "b failed and is not in the table: no trial finished" in compare_table.markdown(table)
        assert table["best"] is None
        none: dict[str, Any] = compare_table.gather("n", {}, {"b": "no trial finished"})
        assert "b failed" in compare_table.markdown(none)
        assert compare_table.lines(none)


class TestControls:
    def pair(self, tmp_path: Path, **more: Any) -> compare._Comparison:
        """A finished first study, and a second that has just been founded."""
        tree = {**made_study.KD, "space": {"train.lr": {"type": "float", "low": 0.01, "high": 0.3}}}
        made_study.make(tmp_path / "n-a", tree, 4)
        other = resolve({**tree, "method": "dkd", **more})
        run_folder.create(tmp_path / "n-b", other, Run("study", "n-b"))
        run_folder.create(tmp_path / "n", other, Run("comparison", "n"))
        return compare._Comparison(tmp_path / "n", {"a": resolve(tree), "b": other}, "sqlite:///none", {})

    def test_are_copied_once(self, tmp_path: Path) -> None:
        found = self.pair(tmp_path)
        assert len(found._lend("b")) == 2 + 2 * 3
        assert found._lend("b") == []
        assert found._lend("a") == []
        first, second = tmp_path / "n-a", tmp_path / "n-b"
        run = Run.read(second / "finals" / "kd-seed2")
        assert run is not None
        assert (run.state, run.tags["lent_by"]) == (COMPLETE, "n-a")
        assert run.results == getattr(Run.read(first / "finals" / "kd-seed2"), "results", None)
        assert run_folder.history(second / "controls/none") == run_folder.history(first / "controls/none")
        assert not (second / "finals" / "champion-seed1").exists()
        assert costs(second, None)[0] == 0  # the first has paid for them
        assert costs(first, None)[0] > 0

    def test_not_where_a_setting_differs(self, tmp_path: Path) -> None:
        assert self.pair(tmp_path, train={"epochs": made_study.EPOCHS, "lr": 0.2})._lend("b") == []

    def test_final_runs_are_as_long_as_the_winners(self, tmp_path: Path) -> None:
        found = self.pair(tmp_path, space={"train.epoch_factor": {"choices": [1, 2]}})
        assert found._lend("b") == ["control none", "control kd"]


def two(trials: int = 4) -> dict[str, Experiment]:
    """The simulated space, and that without views."""
    one = simulated.experiment(trials, 4, concurrent=1, confirm_seeds=2, champion_seeds=2)
    few = {k: v for k, v in simulated.SPACE.items() if "views" not in k}
    return {"views": one, "plain": resolve({**one.to_dict(), "space": few}, strict=False)}


@pytest.mark.long
@pytest.mark.ray
def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are simulated, teacher and final runs are real; interrupted before the second study, then resumed."""
    from mlflow import MlflowClient

    real, calls = study.resume, []

    def stopping(name: str, **kw: Any) -> StudyResult:
        calls.append(name)
        if calls == ["n-views", "n-plain"]:
            raise Interrupted("stopped; go on with: akd search --resume n-plain")
        return real(name, **kw)

    monkeypatch.setattr(study, "resume", stopping)
    with simulated.instead_of_training():
        with pytest.raises(Interrupted, match="compare --resume n --output"):
            compare.compare(two(), "n", output=tmp_path)
        assert Run.read(tmp_path / "n-plain") is not None
        table = compare.resume("n", output=tmp_path)
    assert calls == ["n-views", "n-plain", "n-plain"]  # the finished one is not run again
    assert [m["label"] for m in table["methods"]] == ["views", "plain"]
    assert table["budget"]["equal"]
    assert json.loads((tmp_path / "n" / "comparison.json").read_text(encoding="utf-8")) == table
    for name in ("n-views", "n-plain"):
        checks = verify.verify(tmp_path / name, f"sqlite:///{tmp_path}/mlflow.db")
        assert [c.line() for c in checks if not c.good] == []
    lent = [p for p in (tmp_path / "n-plain").glob("finals/*/run.json") if "lent_by" in p.read_text(encoding="utf-8")]
    assert len(lent) == 4
    assert len(list((tmp_path / "teachers").iterdir())) == 1
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (top,) = client.search_runs([experiment.experiment_id], "tags.`akd.kind` = 'comparison'")
    below = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{top.info.run_id}' and tags.`akd.kind` = 'study'"
    )
    assert sorted(r.info.run_name for r in below) == ["n-plain", "n-views"]
    assert top.info.status == "FINISHED"
    assert top.data.metrics["views/test_accuracy"] == table["methods"][0]["test"]["mean"]
    assert {f.path for f in client.list_artifacts(top.info.run_id)} >= {"comparison.json", "comparison.md"}
