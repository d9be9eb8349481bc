"""``akd report``: what it tells is what the folders hold, and the page needs nobody and harms nobody."""

from __future__ import annotations

import json
import math
import random
import re
import socket
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import made_study
import pyarrow.parquet as pq
import pytest
import ray
from scipy import stats

from akd import cli, running
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.report import facts, figures, formats, fronts, page
from akd.report.facts import Correlation, gather
from akd.result import StudyResult
from akd.searcher import ranking
from akd.summary import closing_lines
from akd.terminal import Display


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study.make(tmp_path_factory.mktemp("runs") / "v", made_study.VIEWS, 16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a space with choices, lists among them, that not every trial has; without views."""
    return made_study.make(tmp_path_factory.mktemp("runs") / "p", made_study.KD, 12)


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a search with two objectives and a bound, among three students."""
    return made_study.make(tmp_path_factory.mktemp("runs") / "f", made_study.FRONT, 40)


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has not ended; its last trial is half way, and the journal's last line half written."""
    study = made_study.make(tmp_path_factory.mktemp("runs") / "g", made_study.KD, 4, ended=False)
    run = Run.read(study / "trials" / "00003")
    assert run is not None
    run.state, run.ended = RUNNING, None
    run.write(study / "trials" / "00003")
    with open(study / "optuna.log", "a", encoding="utf-8") as file:
        file.write('{"op_code": 7, "wor')
    return study


class Reader(HTMLParser):
    """Every tag is closed in its order; what the page would load or run is noted."""

    VOID = ("meta", "br", "circle", "line", "rect", "path", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def harmless(html: str) -> Reader:
    """A page that loads nothing and runs nothing."""
    reader = read(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base", "a"} & set(reader.tags)
    names = {name for name, _ in reader.attributes}
    assert not {"src", "href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert "http" not in html.replace("http-equiv", "")
    return reader


def pictures(html: str) -> dict[str, ET.Element]:
    found = {}
    for svg in re.findall(r"<svg .*?</svg>", html, re.DOTALL):
        root = ET.fromstring(svg)
        found[str(root[0].text)] = root
        assert root[0].tag == "title"
        assert root[1].tag == "desc"
        assert "nan" not in svg
    return found


class TestPage:
    def test_of_a_study_with_views(self, views: Path) -> None:
        html = page.build(gather(views))
        reader = harmless(html)
        assert {
            "Test accuracy of winner and controls",
            "Gain of the winner over each control",
            "Learning curves",
            "Optimisation history",
            "Importance of parameters",
            "Parallel coordinates",
            "Angles",
            "Gate",
            "Diversity against accuracy",
        } <= set(pictures(html))
        text = " ".join(" ".join(reader.words).split())
        result = StudyResult.read(views)
        assert result is not None
        for words in (
            "Which settings of angular_kd over kd make the best student of a resnet8, taught by a wrn_16_1 on digits?",
            f"Trial {result.best_trial['number']} of 16 won: angular_kd over kd",
            f"{100 * result.champion['test']['mean']:.2f} ±",
            "beat",
            "0123456789abcdef",
            "akd search experiment.yaml --name v-again",
            "2,304 instead of 11,304 (80 % saved by keeping its outputs)",
            "rung: epoch 3",
        ):
            assert words in text, words
        assert "/tmp" not in html  # no path of this machine
        assert str(views) not in html

    def test_of_a_study_without_views(self, plain: Path) -> None:
        html = page.build(gather(plain))
        harmless(html)
        assert "Views" not in html
        assert "Angles" not in pictures(html)
        # A list among the choices, and a parameter that not every trial has.
        assert "[3, 6]" in html

    def test_of_a_search_that_goes_on(self, going: Path) -> None:
        found = gather(going)
        text = " ".join(harmless(page.build(found)).words)
        assert "The search has not ended: 3 of 8 trials have" in text
        assert "Nothing is known of test images" in text
        assert found.finals == []
        assert "Left out: 3 trials say nothing about it" in text
        assert "not ended" in text

    def test_of_a_search_that_has_only_begun(self, tmp_path: Path) -> None:
        study = made_study.make(tmp_path / "b", made_study.KD, 0, ended=False)
        (study / "optuna.log").unlink()
        text = " ".join(harmless(page.build(gather(study))).words)
        assert "No trial has finished or been stopped yet." in text

    def test_of_a_search_that_failed(self, tmp_path: Path) -> None:
        study = made_study.make(tmp_path / "f", made_study.KD, 0, ended=False)
        own = Run.read(study)
        assert own is not None
        own.end(study, FAILED, "no trial finished: 3 x out of memory")
        text = " ".join(harmless(page.build(gather(study))).words)
        assert "The search has failed: no trial finished: 3 x out of memory." in text

    def test_of_one_trial_and_one_seed(self, tmp_path: Path) -> None:
        tree = made_study.VIEWS | {"search": {"trials": 1, "champion_seeds": 1, "scheduler": "none"}}
        found = gather(made_study.make(tmp_path / "o", tree, 1))
        text = " ".join(harmless(page.build(found)).words)
        assert "One seed gives no interval." in text
        assert "No trial is stopped early." in text
        assert found.rungs == []

    def test_of_one_epoch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(made_study, "EPOCHS", 1)
        tree = made_study.KD | {"train": {"epochs": 1}, "search": {"trials": 2, "champion_seeds": 1}}
        harmless(page.build(gather(made_study.make(tmp_path / "e", tree, 2))))

    def test_hostile_texts_are_shown_and_do_nothing(self, tmp_path: Path) -> None:
        study = made_study.make(tmp_path / "h", made_study.KD, 8)
        evil = "`</td><script>alert('x')</script><img src=http://x onerror=alert(1)> & co"
        run = Run.read(study / "trials" / "00006")
        assert run is not None
        run.reason = evil
        run.write(study / "trials" / "00006")
        own = Run.read(study)
        assert own is not None
        own.tags["versions"] = evil
        own.write(study)
        html = page.build(gather(study))
        reader = read(html)
        assert not {"script", "img"} & set(reader.tags)
        assert evil in "".join(reader.words)
        told = formats.markdown(gather(study))
        assert "<script>" not in told.replace("\\<script\\>", "")

    def test_colours_are_never_alone(self, views: Path) -> None:
        root = pictures(page.build(gather(views)))["Optimisation history"]
        drawn = {item.attrib.get("class"): item.tag for item in root.iter() if item.attrib.get("class")}
        assert drawn["disc"] == "circle"
        assert drawn["triangle"] == drawn["diamond"] == drawn["cross"] == "path"
        tips = [t.text or "" for t in root.iter("title")][1:]
        assert any("stopped after epoch 3" in t for t in tips)
        assert any("failed" in t for t in tips)

    def test_light_dark_narrow_and_paper(self, plain: Path) -> None:
        html = page.build(gather(plain))
        for words in ("prefers-color-scheme: dark", "@media print", "width=device-width", 'lang="en"', "default-src"):
            assert words in html

    def test_thousands_of_trials(self, tmp_path: Path) -> None:
        found = gather(made_study.make(tmp_path / "m", made_study.VIEWS, 16))

        def html(times: int) -> str:
            many = [t for _ in range(times) for t in found.trials]
            trials = [replace(t, number=k, name=f"trial {k}") for k, t in enumerate(many)]
            return page.build(replace(found, trials=trials, best=3))

        began = time.process_time()
        large, larger = html(125), html(250)
        assert time.process_time() - began < 10
        for text, trials in ((large, 2000), (larger, 4000)):
            assert len(text) < 2_500_000
            assert re.search(f"20[01] of {trials:,} trials are drawn", text)
            assert len(re.findall(r"1,00[01] of [\d,]+ trials are drawn", text)) >= 4  # history, slices, plane, views
            assert f"The best 1,000 of {trials:,} trials; <code>akd report m --format parquet</code> has all." in text
        assert len(larger) < 1.1 * len(large)  # a page has an end, however long the search
        harmless(larger)
        assert "are drawn" not in html(1)
        assert page.trial_rows(found)[1] == page.trial_rows(replace(found, trials=found.trials[::-1]))[1]


class TestFacts:
    def test_trials_are_those_of_the_folders(self, plain: Path) -> None:
        found = gather(plain)
        assert [t.number for t in found.trials] == list(range(12))
        assert found.best == ranking(plain)[0][0].number
        assert found.counts() == {COMPLETE: 7, PRUNED: 4, "FAILED": 1}
        assert found.rungs == [3, 9]
        assert [a.key for a in found.axes] == list(made_study.SPACE)
        assert found.axes[3].choices == ("[3, 6]", "[6, 8]")

    def test_finals_and_gains_are_those_of_the_result(self, plain: Path) -> None:
        found, result = gather(plain), StudyResult.read(plain)
        assert result is not None
        assert [f.words for f in found.finals] == ["winner", "student alone", "plain KD"]
        for f in found.finals:
            values = list(f.accuracy.values())
            wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert (f.low, f.high) == pytest.approx((wanted.low, wanted.high))
        assert [g["mean"] for g in found.gains] == [g.mean for g in result.gain.values()]

    def test_cost(self, plain: Path) -> None:
        cost = gather(plain).cost
        assert cost["pruned_share"] == pytest.approx(4 / 11)
        # Four of eleven trials ended after three epochs of nine; the failed one counts for nothing.
        assert cost["epochs_saved_share"] == pytest.approx(1 - (7 * 9 + 4 * 3) / (11 * 9))

    def test_what_matters_is_most_important(self, tmp_path: Path) -> None:
        space = {k: v for k, v in made_study.SPACE.items() if k in ("train.lr", "method.host.weight")}
        tree = made_study.KD | {"space": space}
        found = gather(made_study.make(tmp_path / "i", tree, 45))
        assert next(iter(found.importance)) == "train.lr"  # the made accuracy depends on nothing else
        assert sum(found.importance.values()) == pytest.approx(1)
        assert "A hint only" not in found.importance_note
        assert figures.chosen(found)[0].key == "train.lr"
        assert "A hint only" in gather(made_study.make(tmp_path / "j", tree, 12)).importance_note

    def test_rank_correlation_against_its_definition(self) -> None:
        draw = random.Random(3)
        pairs = [(x, x + draw.gauss(0, 0.5)) for x in (draw.random() for _ in range(20))]
        r, low, high = facts._spearman(pairs)
        assert r == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
        assert low is not None
        assert high is not None
        half = 1.959964 * math.sqrt((1 + r * r / 2) / 17)
        assert (math.atanh(low), math.atanh(high)) == pytest.approx((math.atanh(r) - half, math.atanh(r) + half))

    def test_the_interval_holds_the_truth_about_as_often_as_it_says(self) -> None:
        draw, inside = random.Random(1), 0
        for _ in range(400):
            _, low, high = facts._spearman([(draw.random(), draw.random()) for _ in range(15)])
            assert low is not None
            assert high is not None
            inside += low <= 0 <= high
        assert 0.91 < inside / 400 < 0.99

    @pytest.mark.parametrize(
        ("pairs", "words"),
        [
            ([(1.0, 2.0)] * 4, "too few"),
            ([(1.0, float(k)) for k in range(6)], "all the same"),
            ([(float(k), float(k)) for k in range(6)], "higher goes with more accurate students"),
            ([(float(k), -float(k)) for k in range(6)], "lower goes with more accurate students"),
            ([(float(k), float(v)) for k, v in enumerate((1, 3, 0, 2, 1.5))], "no clear relation"),
        ],
    )
    def test_a_correlation_in_words(self, pairs: list[tuple[float, float]], words: str) -> None:
        assert words in Correlation("k", "w", len(pairs), *facts._spearman(pairs)).verdict()

    def test_how_rungs_ranked_the_finished_trials(self, plain: Path) -> None:
        found = gather(plain)
        (at_three,) = found.fidelity  # rungs 3 and 9: nothing is foretold at the last epoch
        finished = [t for t in found.trials if t.state == COMPLETE]
        assert at_three.trials == len(finished) > 5
        pairs = [(dict(t.curve)[3], t.accuracy) for t in finished]
        assert at_three.value == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
        figure = figures.curves(found)
        assert figure is not None
        assert (
            f"Rank correlation of rungs with the last epoch: epoch 3 {at_three.figure()}. Of stopped" in figure.caption
        )

    def test_rungs_of_few_finished_trials_and_of_none(self, going: Path, tmp_path: Path) -> None:
        (few,) = gather(going).fidelity
        assert few.figure() == f"{few.trials} finished trials, too few to tell"
        assert "+" not in few.verdict()
        unstopped = made_study.KD | {"search": {"trials": 8, "champion_seeds": 3, "scheduler": "none"}}
        found = gather(made_study.make(tmp_path / "u", unstopped))
        assert found.fidelity == []
        figure = figures.curves(found)
        assert figure is not None
        assert "Rank correlation" not in figure.caption

    def test_reading_changes_nothing(self, going: Path) -> None:
        before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in going.rglob("*")}
        gather(going)
        assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in going.rglob("*")} == before


class TestFormats:
    def test_json_is_strict_and_whole(self, views: Path) -> None:
        def never(word: str) -> float:
            raise AssertionError(word)

        kept = json.loads(formats.as_json(gather(views)), parse_constant=never)
        assert len(kept["trials"]) == 16
        assert kept["best"] == ranking(views)[0][0].number
        assert len(kept["correlations"]) == 4

    def test_markdown(self, views: Path) -> None:
        told = formats.markdown(gather(views))
        rows = [line for line in told.splitlines() if line.startswith("| ")]
        assert sum("| stopped early |" in row for row in rows) == 5
        assert "## Views" in told
        for block in re.findall(r"(?:^\|.*\n)+", told, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1

    def test_table_of_trials_has_every_value_in_its_column(self, plain: Path) -> None:
        found = gather(plain)
        head, rows = page.trial_rows(found)
        by_number = {t.number: t for t in found.trials}
        assert len(rows) == 14
        assert rows[0][0] == str(found.best)
        for row in (dict(zip(head, r, strict=True)) for r in rows[:12]):
            trial = by_number[int(row["trial"])]
            assert float(row["accuracy (%)"]) == pytest.approx(100 * (trial.accuracy or 0), abs=0.006)
            assert row["state"].partition(",")[0].partition(":")[0] == page.STATE_WORDS[trial.state]
            assert int(row["epochs"]) == trial.epochs
            assert row["at epoch 3"] == ("" if trial.epochs < 3 else f"{100 * dict(trial.curve)[3]:.2f}")
            assert float(row["lr"]) == pytest.approx(trial.parameters["train.lr"], rel=0.01)
            assert row["decay_epochs"] == str(trial.parameters.get("train.decay_epochs", ""))

    def test_parquet(self, plain: Path, tmp_path: Path) -> None:
        table = pq.read_table(formats.write(plain, tmp_path / "t.parquet", "parquet")).to_pylist()
        assert len(table) == 14
        for row in table[:12]:
            run = Run.read(plain / "trials" / f"{row['number']:05d}")
            assert run is not None
            assert row["train.lr"] == run.parameters["train.lr"]
            assert row["state"] == run.state
            assert len(row["curve_epochs"]) == row["epochs"]
            lists = run.parameters.get("train.decay_epochs")
            assert row["train.decay_epochs"] == (None if lists is None else json.dumps(lists))
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    @pytest.mark.parametrize("form", ["html", "md", "json", "parquet"])
    def test_command(
        self,
        form: str,
        plain: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def nobody(*arguments: object) -> None:
            raise AssertionError("a report asks nobody")

        monkeypatch.setattr(socket.socket, "connect", nobody)
        out = tmp_path / f"x.{form}"
        assert cli.main(["report", "p", "--output", str(plain.parent), "--format", form, "--out", str(out)]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        assert out.stat().st_size > 1000
        assert not ray.is_initialized()

    def test_command_without_flags(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study = made_study.make(tmp_path / "runs" / "w", made_study.KD, 3)
        assert cli.main(["report", "w", "--output", str(study.parent)]) == 0
        assert (study / "report.html").is_file()
        assert capsys.readouterr().out.strip().endswith("w/report.html")

    def test_damaged_study(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study = made_study.make(tmp_path / "runs" / "w", made_study.KD, 3)
        (study / "trials" / "00001" / "run.json").write_text("{", encoding="utf-8")
        assert cli.main(["report", "w", "--output", str(study.parent)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


class TestEndOfASearch:
    def ended(self, folder: Path) -> tuple[running.RunningStudy, list[str]]:
        """A search at its end, and what it says."""
        said: list[str] = []
        one = object.__new__(running.RunningStudy)
        one.folder, one._page = folder, threading.Lock()
        one.display = cast(Display, SimpleNamespace(say=lambda line, style: said.append(line)))
        return one, said

    def test_leaves_its_report(self, tmp_path: Path) -> None:
        one, said = self.ended(made_study.make(tmp_path / "s", made_study.KD, 3))
        one._report()
        assert said == []
        harmless((tmp_path / "s" / "report.html").read_text(encoding="utf-8"))
        result = StudyResult.read(tmp_path / "s")
        assert result is not None
        assert [line for line in closing_lines(result, "akd ui s") if line.startswith("report    ")]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError("a chart")])
    def test_goes_on_without_a_report(self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*arguments: object) -> None:
            raise error

        one, said = self.ended(made_study.make(tmp_path / "s", made_study.KD, 3))
        monkeypatch.setattr(page, "build", fails)
        one._report()
        assert len(said) == 1
        assert said[0].startswith("the report could not be made: ")
        result = StudyResult.read(tmp_path / "s")
        assert result is not None
        assert not [line for line in closing_lines(result, "akd ui s") if line.startswith("report    ")]


class TestFront:
    def test_facts(self, priced: Path) -> None:
        found = gather(priced)
        by_number = {t.number: t for t in found.trials}
        finished = [t for t in found.trials if t.state == COMPLETE]
        best = {
            name: max((t for t in finished if t.student == name), key=lambda t: t.accuracy or 0)
            for name in ("resnet14", "resnet8")
        }
        assert found.front == [best["resnet14"].number, best["resnet8"].number]
        assert found.best == found.front[0]
        assert by_number[found.front[1]].costs == made_study.COSTS["resnet8"]
        assert found.objectives == ["accuracy", "parameters"]
        assert found.bounds == {"parameters": 1e6}
        out = {s.name: (s.trials, s.left_out) for s in found.students}
        assert out["wrn_40_2"] == (0, "2,243,258 parameters, at most 1,000,000 are allowed")
        assert out["resnet8"][0] + out["resnet14"][0] == 40
        (axis,) = [a for a in found.axes if a.key == "student.name"]
        assert axis.choices == ("resnet8", "resnet14")
        assert "one of resnet8, resnet14, wrn_40_2, taught by" in found.question
        assert "few parameters. Allowed at most: 1 M parameters." in found.question
        assert "the most accurate of 2 trials on the front" in found.answer[0]

    def test_the_page_marks_the_front_by_shape(self, priced: Path) -> None:
        html = page.build(gather(priced))
        harmless(html)
        picture = pictures(html)["Accuracy and parameters"]
        shapes = [e.attrib["class"] for e in picture.iter() if e.attrib.get("class") in ("square", "diamond")]
        assert sorted(shapes) == ["diamond", "diamond", "square", "square"]  # one each, and the legend's
        (member,) = [e for e in picture.iter() if e.attrib.get("class") == "square" and len(e)]
        assert f"trial {gather(priced).front[1]}:" in str(member[0].text)
        assert "77,754" in str(member[0].text)
        assert "no other finished trial beats" in html
        assert "among trials of the same student" in html
        assert "left out: it costs 2,243,258 parameters" in html

    def test_three_objectives_have_a_picture_each_and_no_steps(self, priced: Path) -> None:
        found = gather(priced)
        drawn = [
            fronts.figures(replace(found, objectives=["accuracy", *costs]))
            for costs in (["flops"], ["parameters", "flops"])
        ]
        assert [len(figures) for figures in drawn] == [1, 2]
        assert ["curve s0" in f.svg for figures in drawn for f in figures] == [True, False, False]

    def test_tables_and_files(self, priced: Path, tmp_path: Path) -> None:
        found = gather(priced)
        head, rows = fronts.front_rows(found)
        assert head[:4] == ["trial", "student", "accuracy (%)", "parameters"]
        assert head[4:] == ["FLOPs of an image (no objective)", "ms for one image (no objective)"]
        assert rows[0][:2] == [f"{found.best}, the winner", "resnet14"]
        assert rows[1][3:] == ["77,754", "1,527,040", "0.31"]
        text = formats.write(priced, tmp_path / "r.md", "md").read_text()
        assert "## Front" in text
        assert "| resnet8 | 77,754 |" in text.replace("\\", "")
        told = json.loads(formats.write(priced, tmp_path / "r.json", "json").read_text())
        assert told["front"] == found.front
        table = pq.read_table(formats.write(priced, tmp_path / "r.parquet", "parquet")).to_pydict()
        on = {n for n, yes in zip(table["number"], table["on_front"], strict=True) if yes}
        assert on == set(found.front)
        assert set(table["cost/parameters"]) == {77754.0, 174970.0, None}  # controls of this study have none

    def test_the_closing_box(self, priced: Path) -> None:
        result = StudyResult.read(priced)
        assert result is not None
        lines = closing_lines(result, "akd ui f")
        at = next(k for k, line in enumerate(lines) if line.startswith("front of"))
        assert lines[at] == "front of accuracy and parameters: 2 trials of 26 finished; the winner is the most accurate"
        assert lines[at + 1].endswith("175 k parameters  (resnet14, the winner)")
        assert lines[at + 2].endswith("77.8 k parameters  (resnet8)")
        assert result.note().count("It is the most accurate of 2 trials on the front.") == 1
        many = replace(result, front=result.front * 5)
        assert "  and 2 more, see result.json" in closing_lines(many, "akd ui f")

    def test_one_objective_says_nothing_of_it(self, plain: Path) -> None:
        found = gather(plain)
        assert (found.front, found.objectives, found.students) == ([], ["accuracy"], [])
        html = page.build(found)
        assert "<h2>Front</h2>" not in html
        assert "<h2>Students</h2>" not in html
        result = StudyResult.read(plain)
        assert result is not None
        assert not [line for line in closing_lines(result, "akd ui p") if "front" in line]
