"""A run once more: trained here without Ray, in the folders of a study, then replayed and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from akd import checkpoint, cli
from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.data import load as load_data
from akd.data import split as split_data
from akd.errors import ExperimentError
from akd.folder import COMPLETE, FAILED, PRUNED, Run
from akd.job import Job, kept_keys, run_here, run_job
from akd.provenance import cpu, versions
from akd.replay import Replay, circumstances, find_run, replay
from akd.teacher.keep import obtain

TREE: dict[str, Any] = {
    "data": {"name": "digits", "subset": 300},
    "teacher": {"name": "wrn_16_1", "train": {"epochs": 1, "threads": 1}},
    "student": "resnet8",
    "method": {"host": "kd", "views": {"name": "angular_kd", "count": 2, "head_warmup_epochs": 1}},
    "train": {"epochs": 3, "threads": 1, "ema": 0.9},
    "space": {"train.lr": {"type": "float", "low": 0.01, "high": 0.2}},
}


class Stopped(BaseException):
    """Stands for a kill between two epochs."""


def begin(folder: Path, experiment: Experiment, run: Run) -> None:
    run_folder.create(folder, experiment, run)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study: a finished trial, a stopped one, one that was interrupted, one that failed, a control, a final run."""
    output = tmp_path_factory.mktemp("origin") / "runs"
    study, e = output / "s", resolve(TREE)
    teacher = obtain(e, split_data(e.data, load_data(e.data)), output / "teachers")
    tags = {"teacher_hash": teacher.hash, "versions": versions(), "cpu": cpu()}
    begin(study, e, Run("study", "s", tags=tags))

    def job(folder: Path, **more: Any) -> Job:
        return Job(str(folder), str(teacher.folder), cache=str(output / "cache"), **more)

    for number, lr in enumerate((0.05, 0.1, 0.15, 0.2, 0.07)):
        run = Run("trial", f"trial {number}", number=number, parameters={"train.lr": lr})
        begin(folder := study / "trials" / f"{number:05d}", e.with_values(run.parameters), run)
        if number == 1:  # stopped after two epochs, as a scheduler does
            seen: list[int] = []
            run_job(
                job(folder), on_epoch=lambda r, seen=seen: seen.append(r.epoch), stop=lambda seen=seen: len(seen) == 2
            )
            run.end(folder, PRUNED)
            continue
        if number == 2:  # killed after its first epoch, then resumed

            def dies(record: Any) -> None:
                raise Stopped

            with pytest.raises(Stopped):
                run_job(job(folder), on_epoch=dies)
        if number == 4:  # failed before its first epoch was over
            run.end(folder, FAILED, "diverged in epoch 1")
            continue
        run_here([job(folder, keep=("embedding", "logits"))])
        run.end(folder, COMPLETE)
    control = resolve(e.to_dict() | {"method": "none"}, strict=False)
    run = Run("control", "control none")
    begin(folder := study / "controls" / "none", control, run)
    run_here([Job(str(folder))])
    run.end(folder, COMPLETE)
    run = Run("final", "champion seed 1")
    begin(folder := study / "finals" / "champion-seed1", e, run)
    run_here([job(folder, final=True)], on_end=lambda job, results: run.end(folder, COMPLETE, None, **results))
    assert kept_keys(study / "trials" / "00000")
    assert torch.get_num_threads() == 1
    return output


@pytest.fixture
def study(origin: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(origin, tmp_path / "runs")
    return tmp_path / "runs" / "s"


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "full", "epochs", "heads"),
    [
        ("0", "trial 0", 3, 1),
        ("1", "trial 1", 2, 1),
        ("2", "trial 2", 3, 1),
        ("control:none", "control none", 3, 0),
        ("champion:1", "champion seed 1", 3, 1),
    ],
)
def test_the_same_bits_again(name: str, full: str, epochs: int, heads: int, origin: Path) -> None:
    study = origin / "s"
    before = stamps(study)
    started: list[Any] = []
    found = replay(study, name, on_start=lambda *told: started.append(told))
    assert started == [(f"{full} of s", epochs)]
    assert [(e.number, e.heads) for e in found.epochs] == [
        *[(k + 1, True) for k in range(heads)],
        *[(k + 1, False) for k in range(epochs)],
    ]
    assert found.matches, [e.words() for e in found.epochs]
    assert found.weights_equal
    assert found.weights[0] == found.weights[1]
    assert (
        found.sentence()
        == f"{full} of s came out the same again, bit for bit: {epochs} epochs and the student's weights"
    )
    assert stamps(study) == before  # nothing of the study is touched
    assert torch.get_num_threads() == 1


def test_on_the_command_line(origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(origin, tmp_path / "runs")
    where = ["--output", str(tmp_path / "runs")]
    assert cli.main(["replay", "s", "1", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trial 1 of s, again: 2 epochs"
    assert [line.split()[-1] for line in lines[2:5]] == ["equal"] * 3
    assert lines[2].split()[:2] == ["head", "1"]
    assert lines[-2].startswith("weights: SHA-256 ")
    assert lines[-2].endswith("every tensor equal")
    assert not (tmp_path / "runs" / "s" / "replays").exists()
    for number in (1, 2):  # each into a folder of its own
        assert cli.main(["replay", "s", "control:none", *where, "--keep"]) == 0
        kept = tmp_path / "runs" / "s" / "replays" / f"control-none-{number}"
        assert f"kept in {kept}" in capsys.readouterr().out
        told = json.loads((kept / "replay.json").read_text())
        assert told["matches"] is True
        assert (kept / "student" / "student.safetensors").is_file()
        assert not (kept / "run.json").exists()  # by which runs of the study are known
    assert cli.main(["report", "s", *where, "--format", "json"]) == 0


class TestDifferences:
    def test_another_setting(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = study / "trials" / "00001" / "experiment.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("lr: 0.1\n", "lr: 0.11\n"), encoding="utf-8")
        assert path.read_text(encoding="utf-8") != text
        own = Run.read(study)
        assert own is not None
        own.tags |= {"versions": versions().replace("torch ", "torch 1."), "cpu": "an abacus, two hands"}
        own.write(study)
        assert cli.main(["replay", "s", "1", "--output", str(study.parent)]) == 1
        out, err = capsys.readouterr()
        assert " -> " in out.splitlines()[3]
        assert "and" in out.splitlines()[3]
        assert "not equal" in out.splitlines()[-1]
        assert err.startswith("akd: trial 1 of s did NOT come out the same, from head epoch 1 on: torch was 1.")
        assert f"the CPU was an abacus, two hands, is {cpu()}" in err
        assert err.count("\n") == 1

    def test_the_weights_alone(self, study: Path) -> None:
        path = study / "trials" / "00001" / "student" / "student.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        found = replay(study, "1")
        assert not found.matches
        assert found.weights_equal is False
        assert found.weights[0] != found.weights[1]
        assert "in its end alone: nothing that was recorded" in found.sentence()

    def test_weights_of_another_epoch_or_none_are_not_compared(self, study: Path) -> None:
        config = study / "trials" / "00001" / "student" / "config.json"
        checkpoint.write_json(config, json.loads(config.read_text()) | {"epoch": 3})
        found = replay(study, "1")
        assert (found.matches, found.weights_equal) == (True, None)
        assert "there are no weights of then" in found.sentence()
        shutil.rmtree(config.parent)
        assert replay(study, "1").weights_equal is None

    def test_a_test_accuracy(self, study: Path) -> None:
        folder = study / "finals" / "champion-seed1"
        run = Run.read(folder)
        assert run is not None
        run.results["test/accuracy"] = 0.5
        run.write(folder)
        found = replay(study, "champion:1")
        assert found.results["test/accuracy"][0] == 0.5
        assert not found.matches

    def test_nothing_to_say_of_circumstances(self) -> None:
        assert circumstances(Run("study", "s")) == []  # before they were recorded
        assert circumstances(Run("study", "s", tags={"versions": versions(), "cpu": cpu()})) == []


class TestMistakes:
    def say(self, study: Path, *arguments: str) -> str:
        with pytest.raises(ExperimentError) as raised:
            replay(study, *arguments)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_no_such_run(self, study: Path) -> None:
        assert "trial = '9': there is no such run in" in self.say(study, "9")
        assert "did you mean 'control:none'" in self.say(study, "control:nnone")
        assert "did you mean 'champion:1'" in self.say(study, "champion:2")
        for name in ("../other/00001", "/etc", "trials", "trials/../trials/00001", ""):
            assert "there is no such run in" in self.say(study, name)

    def test_by_its_folder(self, study: Path) -> None:
        assert find_run(study, "trials/00001") == find_run(study, "1") == study / "trials" / "00001"

    def test_nothing_to_compare(self, study: Path) -> None:
        assert "trial 4 has finished no epoch that could be compared" in self.say(study, "4")

    def test_the_teacher_is_gone(self, study: Path) -> None:
        for path in study.parent.glob("teachers/*"):
            shutil.rmtree(path, ignore_errors=True)
        assert "its teacher is gone: there is no" in self.say(study, "1")
        assert isinstance(replay(study, "control:none"), Replay)  # which learns from none

    def test_no_study(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["replay", "t", "1", "--output", str(study.parent)]) == 2
        assert "there is no study of this name" in capsys.readouterr().err
        assert cli.main(["replay", "s", "", "--output", str(study.parent)]) == 2
        assert cli.main(["replay", "s", "--output", str(study.parent)]) == 2
        assert capsys.readouterr().err.count("\n") == 2
