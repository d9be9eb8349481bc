"""A run in its folder: what is written, what survives a cut, and how training goes on there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from akd import checkpoint
from akd import folder as run_folder
from akd.config import Experiment, load, resolve
from akd.data import DataConfig, TrainData, split
from akd.data import load as load_data
from akd.fit import EpochRecord, FitResult, metrics_equal
from akd.folder import FAILED, RUNNING, Run
from akd.teacher.keep import load_student
from akd.world import World


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=150)
    return split(config, load_data(config))


def experiment(**train: Any) -> Experiment:
    return resolve({"method": "none", "train": {"epochs": 4, "batch_size": 32, "ema": 0.9, **train}})


def start(folder: Path, **train: Any) -> Experiment:
    e = experiment(**train)
    run_folder.create(folder, e, Run("trial", "trial 0", number=0))
    return e


class Cut(Exception):  # noqa: N818 - an event, not a fault
    """Stands for a kill."""


def train(folder: Path, data: TrainData, cut: int | None = None, **kw: Any) -> FitResult:
    def on_epoch(record: EpochRecord) -> None:
        told.append(record.epoch)
        if record.epoch == cut:
            raise Cut

    told: list[int] = kw.pop("told", [])
    return run_folder.train(folder, experiment(), data, None, on_epoch=on_epoch, **kw)


class TestRun:
    def test_round_trip(self, tmp_path: Path) -> None:
        run = Run(
            "trial", "trial 3", number=3, parameters={"train.lr": 0.1, "train.decay_epochs": [1, 2]}, tags={"a": "b"}
        )
        run.write(tmp_path)
        assert Run.read(tmp_path) == run
        run.end(tmp_path, FAILED, "out of memory", **{"test/accuracy": 0.5})
        again = Run.read(tmp_path)
        assert again == run
        assert again is not None
        assert (again.state, again.reason, again.results) == (FAILED, "out of memory", {"test/accuracy": 0.5})
        assert again.ended is not None
        assert again.ended >= again.started

    def test_none_where_nothing_was_written(self, tmp_path: Path) -> None:
        assert Run.read(tmp_path) is None
        assert Run.read(tmp_path / "not" / "there") is None

    def test_create_writes_the_experiment_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder with a run.json is whole: a kill between the two leaves one that is made again."""

        def dying(self: Run, folder: Path) -> None:
            raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(Run, "write", dying)
            with pytest.raises(Cut):
                start(tmp_path / "r")
        assert Run.read(tmp_path / "r") is None
        e = start(tmp_path / "r")
        run = Run.read(tmp_path / "r")
        assert run is not None
        assert run.state == RUNNING
        assert load(tmp_path / "r" / "experiment.yaml", {}, strict=False) == e


class TestHistory:
    def test_of_nothing(self, tmp_path: Path) -> None:
        assert run_folder.history(tmp_path) == []
        assert math.isnan(run_folder.accuracy(tmp_path))

    def test_half_lines_and_doubles_do_not_count(self, tmp_path: Path) -> None:
        lines = [
            '{"epoch": 2, "at": 1, "val/accuracy": 0.2}',
            '{"epoch": 1, "at": 1, "val/accuracy": 0.1}',
            '{"epoch": 2, "at": 5, "val/accuracy": 0.9}',  # the first to be written is what was told
            "",
            '{"epoch": 3, "at": 1, "val/acc',
        ]
        (tmp_path / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")
        assert [(e["epoch"], e["val/accuracy"]) for e in run_folder.history(tmp_path)] == [(1, 0.1), (2, 0.2)]
        assert run_folder.accuracy(tmp_path) == 0.2

    def test_without_validation(self, tmp_path: Path) -> None:
        (tmp_path / "history.jsonl").write_text('{"epoch": 1, "at": 1}\n', encoding="utf-8")
        assert math.isnan(run_folder.accuracy(tmp_path))


class TestTrain:
    def test_leaves_everything_of_a_run(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        told: list[int] = []
        result = train(tmp_path, data, told=told)
        assert told == [1, 2, 3, 4]
        entries = run_folder.history(tmp_path)
        assert [int(e["epoch"]) for e in entries] == told
        for kept, made in zip(entries, result.history, strict=True):
            assert {k: v for k, v in kept.items() if k != "at"} == made
        assert [e["at"] for e in entries] == sorted(e["at"] for e in entries)
        assert run_folder.accuracy(tmp_path) == result.accuracy
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["epoch_000003", "epoch_000004"]
        weights = result.student.state_dict()
        kept_weights = load_file(tmp_path / "student" / "student.safetensors")
        assert all(torch.equal(kept_weights[k], weights[k]) for k in weights)

    @pytest.mark.parametrize("cut", [1, 3, 4])
    def test_goes_on_where_it_was_cut(self, cut: int, data: TrainData, tmp_path: Path) -> None:
        for name in ("whole", "cut"):
            start(tmp_path / name)
        whole = train(tmp_path / "whole", data)
        with pytest.raises(Cut):
            train(tmp_path / "cut", data, cut=cut)
        told: list[int] = []
        again = train(tmp_path / "cut", data, told=told)
        assert told == list(range(cut, 5))  # the epoch that may not have been heard of comes again
        a, b = (run_folder.history(tmp_path / n) for n in ("whole", "cut"))
        assert len(b) == 4
        for x, y in zip(a, b, strict=True):
            assert metrics_equal({k: v for k, v in x.items() if k != "at"}, {k: v for k, v in y.items() if k != "at"})
        assert all(torch.equal(v, again.student.state_dict()[k]) for k, v in whole.student.state_dict().items())

    def test_cut_between_checkpoint_and_history(
        self, data: TrainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start(tmp_path)
        real = run_folder.export

        def dying(folder: Path, student: Any, e: Any, d: Any, facts: dict[str, Any]) -> None:
            if facts["epoch"] == 2:
                raise Cut
            real(folder, student, e, d, facts)

        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "export", dying)
            with pytest.raises(Cut):
                train(tmp_path, data)
        assert len(run_folder.history(tmp_path)) == 1
        told: list[int] = []
        train(tmp_path, data, told=told)
        assert told == [2, 3, 4]
        assert [int(e["epoch"]) for e in run_folder.history(tmp_path)] == [1, 2, 3, 4]
        assert json.loads((tmp_path / "student" / "config.json").read_text())["epoch"] == 4

    def test_half_a_line_does_not_spoil_the_next(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        with pytest.raises(Cut):
            train(tmp_path, data, cut=2)
        path = tmp_path / "history.jsonl"
        path.write_bytes(path.read_bytes()[:-30])  # a full disk, a power cut
        assert len(run_folder.history(tmp_path)) == 1
        train(tmp_path, data)
        assert [int(e["epoch"]) for e in run_folder.history(tmp_path)] == [1, 2, 3, 4]

    def test_a_finished_run_is_not_trained_again(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        train(tmp_path, data)
        before = (tmp_path / "history.jsonl").read_bytes()
        told: list[int] = []
        again = train(tmp_path, data, told=told)
        assert told == [4]
        assert again.epochs_run == 4
        assert (tmp_path / "history.jsonl").read_bytes() == before

    def test_a_damaged_checkpoint_costs_one_epoch(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        with pytest.raises(Cut):
            train(tmp_path, data, cut=3)
        (tmp_path / "checkpoints" / "epoch_000003" / "weights.safetensors").write_bytes(b"damaged")
        told: list[int] = []
        with pytest.warns(UserWarning, match="epoch_000003"):
            train(tmp_path, data, told=told)
        assert told == [2, 3, 4]
        assert [int(e["epoch"]) for e in run_folder.history(tmp_path)] == [1, 2, 3, 4]

    def test_all_checkpoints_damaged(self, data: TrainData, tmp_path: Path) -> None:
        """The run begins again; no epoch is there twice, and its checkpoints are kept anew."""
        start(tmp_path)
        train(tmp_path, data)
        whole = (tmp_path / "history.jsonl").read_bytes(), (tmp_path / "student/student.safetensors").read_bytes()
        (tmp_path / "checkpoints" / "epoch_000004" / "manifest.json").unlink()
        (tmp_path / "checkpoints" / "epoch_000003" / "state.json").write_bytes(b"")
        told: list[int] = []
        with pytest.raises(Cut), pytest.warns(UserWarning, match="the run begins again"):
            train(tmp_path, data, told=told, cut=2)
        assert told == [1, 2]
        assert [p.name for p in checkpoint.all_checkpoints(tmp_path / "checkpoints")] == [
            "epoch_000001",
            "epoch_000002",
        ]
        train(tmp_path, data, told=told)
        assert told == [1, 2, 2, 3, 4]
        assert (
            (tmp_path / "history.jsonl").read_bytes(),
            (tmp_path / "student/student.safetensors").read_bytes(),
        ) == whole

    def test_a_damaged_line_of_the_history_is_told_again(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        with pytest.raises(Cut):
            train(tmp_path, data, cut=3)
        before = run_folder.history(tmp_path)
        lines = (tmp_path / "history.jsonl").read_bytes().splitlines(keepends=True)
        lines[0], lines[1] = b'[1, "no entry"]\n', lines[1][:40] + b"\xff\n"
        (tmp_path / "history.jsonl").write_bytes(b"".join(lines))
        assert [e["epoch"] for e in run_folder.history(tmp_path)] == [3]
        train(tmp_path, data)
        after = run_folder.history(tmp_path)
        assert [e["epoch"] for e in after] == [1, 2, 3, 4]
        assert [metrics_equal(a | {"at": 0}, b | {"at": 0}) for a, b in zip(before, after, strict=False)] == [True] * 3

    def test_stopped_by_its_carrier(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        result = train(tmp_path, data, stop=lambda: len(run_folder.history(tmp_path)) >= 2)
        assert (result.stopped, result.epochs_run) == (True, 2)
        assert json.loads((tmp_path / "student" / "config.json").read_text())["epoch"] == 2

    def test_every_student(self, data: TrainData, tmp_path: Path) -> None:
        start(tmp_path)
        train(tmp_path, data, every_student=True)
        names = sorted(p.name for p in (tmp_path / "students").iterdir())
        assert names == [f"epoch_00000{e}" for e in (1, 2, 3, 4)]
        last = load_file(tmp_path / "students" / names[-1] / "student.safetensors")
        kept = load_file(tmp_path / "student" / "student.safetensors")
        first = load_file(tmp_path / "students" / names[0] / "student.safetensors")
        assert all(torch.equal(last[k], kept[k]) for k in kept)
        assert any(not torch.equal(first[k], kept[k]) for k in kept)


def test_what_is_handed_over_says_how_to_use_it(data: TrainData, tmp_path: Path) -> None:
    start(tmp_path)
    result = train(tmp_path, data)
    config = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["model"] == "resnet8"
    assert (config["num_classes"], config["in_channels"], config["image_size"]) == (10, 1, [8, 8])
    assert config["classes"] == [str(c) for c in range(10)]
    assert config["normalise"] == {"mean": [0.3058], "std": [0.3762], "range": "0..1"}
    assert config["method"] == resolve({"method": "none"}).to_dict()["method"]
    assert (config["epoch"], config["validation_accuracy"]) == (4, result.accuracy)
    student = load_student(tmp_path / "student")
    assert not student.training
    image = torch.rand(2, 1, 8, 8)
    # To rounding: who is only asked lies channels last.
    assert torch.allclose(student(image).logits, result.student(image).logits, rtol=1e-5, atol=1e-6)
    weights = result.student.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


def test_all_workers_go_on_from_the_checkpoint_that_the_first_found(tmp_path: Path) -> None:
    """Whatever the others would see of a shared disk: none of them looks, and only the first drops what is damaged."""
    for epoch in (1, 2):
        checkpoint.save(tmp_path / "checkpoints", epoch, {"x": torch.zeros(3)}, {})
    (tmp_path / "checkpoints" / "epoch_000002" / "weights.safetensors").write_bytes(b"")
    told: list[tuple[int, ...]] = []

    class Worker(World):
        def first(self, values: tuple[int, ...]) -> tuple[int, ...]:
            told.append(values)
            return told[0]

    with pytest.warns(UserWarning, match="epoch_000001, the one before it, is used"):
        found = [run_folder.start_of(tmp_path / "checkpoints", Worker(rank, 2)) for rank in (0, 1)]
    assert found == [tmp_path / "checkpoints" / "epoch_000001"] * 2
    assert told == [(1, 0), (-1, -1)]
