"""More trials for a study that is there: what changes in its folder, at any moment of a kill, and in MLflow."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_study
import pytest
from filelock import FileLock
from test_searcher import FLAT, Killed, Session, experiment, trials_of

from akd import checkpoint, cli, more, started
from akd import folder as run_folder
from akd.champion import at_length_of, final_seeds
from akd.config import Experiment, load, resolve
from akd.errors import AkdError, ExperimentError
from akd.folder import COMPLETE, RUNNING, Run
from akd.logged import Logged, default_uri
from akd.mirror import Mirror, open_mirror
from akd.report import facts, formats
from akd.report.verify import verify
from akd.result import StudyResult, earlier_results
from akd.tracking import Tracker


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of eight trials that MLflow knows."""
    output = tmp_path_factory.mktemp("origin") / "runs"
    study = made_study.make(output / "s")
    started.keep(study, load(study / "experiment.yaml", {}, strict=False))
    # Final runs as a search makes them: with the winner's configuration, or a control's, and a seed of their own.
    for folder, (_, _, e) in more.seeded(study, wanted(study, best_of(study))).items():
        checkpoint.write_text(folder / "experiment.yaml", e.to_yaml())
    (study / "report.html").write_text("<!doctype html>", encoding="utf-8")
    track(study)
    return output


@pytest.fixture
def study(origin: Path, tmp_path: Path) -> Path:
    shutil.copytree(origin, tmp_path / "runs")
    return tmp_path / "runs" / "s"


def track(study: Path) -> None:
    """As a session that starts and ends."""
    output = study.parent
    said: list[str] = []
    title = "digits: wrn_16_1 to resnet8"
    tracker = Tracker(default_uri(output), output, study, title, retry_s=0.01, on_trouble=said.append)
    for path in sorted(study.glob("*/*/run.json")):
        tracker.changed(path.parent)
    assert tracker.close(), said


def best_of(study: Path) -> int:
    result = StudyResult.read(study)
    assert result is not None
    return int(result.best_trial["number"])


def wanted(study: Path, number: int) -> dict[str, Experiment]:
    """Champion and controls, if trial ``number`` wins."""
    e = load(study / "experiment.yaml", {}, strict=False)
    run = Run.read(study / "trials" / f"{number:05d}")
    assert run is not None
    controls = {n: resolve(e.to_dict() | {"method": n}, strict=False) for n in ("none", "kd")}
    winner = e.with_values(run.parameters)
    return {"champion": winner, **at_length_of(winner, controls)}


def add(study: Path, number: int, mirror: Mirror | None = None) -> int:
    e = load(study / "experiment.yaml", {}, strict=False)
    return more.add(study, e, number, mirror or Mirror(None, study.parent))


def state_of(study: Path) -> dict[str, Any]:
    """Everything but MLflow's store, as text."""
    return {
        str(p.relative_to(study)): p.read_text(encoding="utf-8", errors="replace")
        for p in sorted(study.rglob("*"))
        if p.is_file() and not p.name.endswith((".lock", ".log"))
    }


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[int]:
    """Kill the process at its first change of a file after ``moment`` of them; the list holds how many there were."""
    count = [0]

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kw: Any) -> Any:
            if count[0] >= moment:
                raise Killed
            count[0] += 1
            return real(*args, **kw)

        monkeypatch.setattr(owner, name, counted)

    before(os, "replace")  # every file that akd writes, and the result that is moved aside
    before(os, "rename")
    before(Path, "unlink")
    return count


def at_every_moment(
    study: Path, monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], Any], again: Callable[[Path], Any]
) -> None:
    """``do`` killed at each of its changes and completed by ``again`` leaves what it leaves undisturbed."""
    whole = shutil.copytree(study, study.parent / "whole")
    with monkeypatch.context() as patch:
        count = kill_at(patch, 10**6)
        do(whole)
    assert count[0] > 3
    for moment in range(count[0]):
        cut = shutil.copytree(study, study.parent / f"cut{moment}")
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            with pytest.raises(Killed):
                do(cut)
        again(cut)
        left = {k: v for k, v in state_of(cut).items() if "/." not in f"/{k}" or not k.rpartition(".")[2].isdigit()}
        assert left == state_of(whole), f"killed at change {moment}"


class TestTrials:
    def test_a_finished_study_goes_on(self, study: Path) -> None:
        assert add(study, 4) == 12
        e = load(study / "experiment.yaml", {}, strict=False)
        assert e.search.trials == 12
        started.compare(study, e, e)  # the note of what it was started with agrees
        run = Run.read(study)
        assert run is not None
        assert (run.state, run.ended, run.tags["trials_added"], run.tags["trials"]) == (
            RUNNING,
            None,
            "4 after 8",
            "12",
        )
        assert StudyResult.read(study) is None  # what is told of it now is how far it has come
        assert (study / "result-8.json").is_file()
        assert "The search has not ended: 8 of 12 trials" in facts.gather(study).answer[0]
        assert facts.gather(study).reproduce["trials added"] == "4 after 8"
        formats.write(study)
        assert not any(
            c.problems for c in verify(study, default_uri(study.parent)) if c.name not in ("states", "result")
        )

    def test_several_times_and_of_one_that_was_stopped(self, study: Path) -> None:
        assert [add(study, 4), add(study, 1), add(study, 2)] == [12, 13, 15]
        run = Run.read(study)
        assert run is not None
        assert run.tags["trials_added"] == "4 after 8, 1 after 12, 2 after 13"
        assert load(study / "experiment.yaml", {}, strict=False).search.trials == 15
        assert [p.name for p in study.glob("result*.json")] == ["result-8.json"]

    def test_one_that_ended_early_gets_more_than_it_has(self, study: Path) -> None:
        shutil.rmtree(study / "trials" / "00007")  # a time budget had passed
        assert add(study, 3) == 10

    def test_killed_at_any_moment(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def again(folder: Path) -> None:
            more.catch_up(folder, Mirror(None, folder.parent))
            if load(folder / "experiment.yaml", {}, strict=False).search.trials == 8:  # nothing had been noted yet
                add(folder, 4)

        at_every_moment(study, monkeypatch, lambda folder: add(folder, 4), again)

    def test_in_the_storage_too(self, study: Path, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        mirror = open_mirror(f"file://{tmp_path}/shared", study.parent)
        mirror.up_all(study)
        add(study, 4, mirror)
        there = tmp_path / "shared" / "s"
        assert not (there / "result.json").exists()
        for name in ("experiment.yaml", ".experiment.yaml", "run.json", "result-8.json"):
            assert (there / name).read_bytes() == (study / name).read_bytes(), name
        adopted = open_mirror(f"file://{tmp_path}/shared", tmp_path / "other")
        assert adopted.adopt(tmp_path / "other" / "s")
        e = load(tmp_path / "other" / "s" / "experiment.yaml", {}, strict=False)
        started.compare(tmp_path / "other" / "s", e, e)

    def test_not_while_it_is_searched(self, study: Path) -> None:
        with FileLock(study / ".lock"), pytest.raises(ExperimentError, match="is being searched by another process"):
            add(study, 4)
        assert load(study / "experiment.yaml", {}, strict=False).search.trials == 8

    def test_a_damaged_note(self, study: Path) -> None:
        (study / ".more.json").write_text("[1", encoding="utf-8")
        with pytest.raises(AkdError, match=r"\.more\.json is damaged, the study cannot go on"):
            more.catch_up(study, Mirror(None, study.parent))

    @pytest.mark.parametrize("value", ["0", "-3", "2.5", "many", "true", ""])
    def test_no_number(self, value: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = state_of(study)
        assert cli.main(["search", "--resume", "s", "--output", str(study.parent), f"--add-trials={value}"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "--add-trials" in line
        assert state_of(study) == before

    def test_from_the_library(self, study: Path) -> None:
        from akd.study import resume

        for value in (0, -1, 1.5, True, "3"):
            with pytest.raises(ExperimentError, match=r"add_trials = .*must be a whole number of at least 1"):
                resume("s", output=study.parent, add_trials=value)  # type: ignore[arg-type]

    def test_what_else_is_given_is_still_refused(
        self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def say(*arguments: str) -> str:
            assert cli.main(["search", *arguments, "--output", str(study.parent)]) == 2
            return capsys.readouterr().err

        assert "--add-trials N gives it more trials" in say("--resume", "s", "--trials", "12")
        assert "give --resume NAME too, or --trials N" in say("quickstart", "--add-trials", "3")
        assert "--warm-start" in say("--resume", "s", "--warm-start", "s")
        file = tmp_path / "s.yaml"
        file.write_text((study / "experiment.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        line = say(str(file), "--trials", "11", "--resume", "s")
        assert "search.trials: 8 -> 11" in line
        assert "put it back and give --add-trials 3" in line
        wider = file.read_text(encoding="utf-8").replace("high: 0.3", "high: 0.9")
        file.write_text(wider, encoding="utf-8")
        line = say(str(file), "--resume", "s", "--add-trials", "3")
        assert "space.train.lr.high: 0.3 -> 0.9" in line
        assert load(study / "experiment.yaml", {}, strict=False).search.trials == 8


class TestFinalRuns:
    def make_way(self, study: Path, number: int, mirror: Mirror | None = None) -> tuple[list[str], list[Path]]:
        moved: list[Path] = []
        found = more.make_way(
            study, wanted(study, number), f"trial {number}", mirror or Mirror(None, study.parent), moved.append
        )
        return found, moved

    def other(self, study: Path) -> int:
        return 0 if best_of(study) else 1

    def test_the_same_winner_keeps_its_runs(self, study: Path) -> None:
        number = best_of(study)
        add(study, 4)  # the number of trials is no part of a run
        before = state_of(study / "finals")
        assert self.make_way(study, number) == ([], [])
        assert state_of(study / "finals") == before

    def test_another_winner_moves_the_champions_alone(self, study: Path) -> None:
        names = [f"champion-seed{s}" for s in final_seeds(load(study / "experiment.yaml", {}, strict=False))]
        number = self.other(study)
        add(study, 4)
        ended, moved = self.make_way(study, number)
        assert ended == names
        assert sorted(p.name for p in (study / "finals").iterdir()) == sorted(
            f"{n}-seed{s}" for n in ("none", "kd") for s in (1, 2, 3)
        )
        assert moved == [study / "finals-1" / name for name in names]
        run = Run.read(moved[0])
        assert run is not None
        assert (run.state, run.tags["superseded"]) == (COMPLETE, f"by trial {number}")
        track(study)
        said = {c.name: c for c in verify(study, default_uri(study.parent))}
        assert said["no run twice"].good, said["no run twice"].line()
        assert said["trials"].good
        notes = Logged.read(moved[0], default_uri(study.parent))
        assert notes.ended == COMPLETE
        from mlflow import MlflowClient

        tags = MlflowClient(default_uri(study.parent)).get_run(notes.run_id).data.tags
        assert tags["akd.superseded"] == f"by trial {number}"
        assert self.make_way(study, number) == ([], [])

    def test_a_longer_winner_wants_controls_of_its_length(self, study: Path) -> None:
        e = load(study / "experiment.yaml", {}, strict=False)
        longer = {n: replace(x, train=replace(x.train, epoch_factor=3)) for n, x in wanted(study, 0).items()}
        ended = more.make_way(study, longer, "trial 0", Mirror(None, study.parent), lambda folder: None)
        assert len(ended) == 3 * len(final_seeds(e))
        assert list((study / "finals").iterdir()) == []

    def test_again_and_again(self, study: Path) -> None:
        number = best_of(study)
        self.make_way(study, self.other(study))
        for name in ("champion-seed1", "champion-seed2"):  # one of the second winner's has ended, one has not
            folder = study / "finals" / name
            e = wanted(study, self.other(study))["champion"]
            run_folder.create(folder, e, Run("final", name, state=COMPLETE if name.endswith("1") else RUNNING))
        ended, moved = self.make_way(study, number)
        assert ended == ["champion-seed1"]
        assert moved == [study / "finals-2" / "champion-seed1", study / "finals-2" / "champion-seed2"]

    def test_killed_at_any_moment(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        number = self.other(study)
        at_every_moment(study, monkeypatch, lambda f: self.make_way(f, number), lambda f: self.make_way(f, number))

    def test_in_the_storage_too(self, study: Path, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        mirror = open_mirror(f"file://{tmp_path}/shared", study.parent)
        mirror.up_all(study)
        for path in (study / "finals").iterdir():
            mirror.up_all(path)
        self.make_way(study, self.other(study), mirror)
        there = tmp_path / "shared" / "s"
        assert sorted(p.name for p in (there / "finals").iterdir() if p.name.startswith("champion")) == []
        assert (there / "finals-1" / "champion-seed1" / "history.jsonl").is_file()
        # Killed between the move here and there: what is left there must not be taken for the new winner's.
        shutil.copytree(there / "finals-1" / "champion-seed1", there / "finals" / "champion-seed1")
        self.make_way(study, self.other(study), mirror)
        assert not (there / "finals" / "champion-seed1").exists()

    def test_told_in_the_result(self, study: Path) -> None:
        assert earlier_results(study) == []
        number, kept = best_of(study), json.loads((study / "result.json").read_text())
        add(study, 4)
        assert earlier_results(study) == [{"trials": 8, "best_trial": number, "test": kept["champion"]["test"]["mean"]}]


def test_trials_that_are_added_follow_those_there_are(tmp_path: Path) -> None:
    """Killed in the middle of the added ones as undisturbed: a suggestion depends on seed, number and folders."""
    Session(tmp_path / "whole", experiment(FLAT, trials=4, seed=3)).run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    before = trials_of(tmp_path / "whole")
    Session(tmp_path / "whole", experiment(FLAT, trials=9, seed=3)).run()
    assert trials_of(tmp_path / "whole")[:4] == before
    session = Session(tmp_path / "cut", experiment(FLAT, trials=9, seed=3))
    for _ in range(2):
        begun = session.start()
        assert begun is not None
        list(session.epochs(*begun))
    begun = session.start()
    assert begun is not None
    next(session.epochs(*begun), None)
    Session(tmp_path / "cut", experiment(FLAT, trials=9, seed=3)).run()
    assert trials_of(tmp_path / "cut") == trials_of(tmp_path / "whole")


def test_an_old_result_is_read(study: Path) -> None:
    kept = json.loads((study / "result.json").read_text())
    for name in ("warm_start", "earlier"):
        del kept[name]
    (study / "result.json").write_text(json.dumps(kept))
    result = StudyResult.read(study)
    assert result is not None
    assert (result.warm_start, result.earlier) == ({}, [])
