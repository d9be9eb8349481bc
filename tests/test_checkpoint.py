"""Checkpoints: whole or not at all, and damage anywhere is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

import akd
from akd import checkpoint
from akd.errors import CheckpointError

TENSORS = {
    "a": torch.tensor([1.5, float("nan"), -0.0]),
    "count": torch.tensor(7),
    "half": torch.tensor([1.0, 2.0]).bfloat16(),
    "none": torch.zeros(0, 3),
}
STATE = {"epoch": 1, "history": [{"val/loss": 0.1 + 0.2, "tiny": 5e-324}], "text": "käse"}
FILES = ("manifest.json", "state.json", "weights.safetensors")


def save(folder: Path, epoch: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, epoch, TENSORS, {**STATE, "epoch": epoch}, keep)


class TestRoundTrip:
    def test_bits_come_back(self, tmp_path: Path) -> None:
        tensors, state = checkpoint.load(save(tmp_path / "new" / "run", 1))
        assert state == STATE
        assert tensors.keys() == TENSORS.keys()
        for name, value in TENSORS.items():
            assert tensors[name].dtype == value.dtype
            assert tensors[name].shape == value.shape
            # as bytes, because NaN equals nothing and -0.0 equals 0.0
            assert torch.equal(tensors[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))

    def test_tensors_that_share_memory_or_are_not_contiguous(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).view(3, 4)
        awkward = {"t": base.T, "row": base[1], "same": base, "grad": base.clone().requires_grad_()}
        tensors, _ = checkpoint.load(checkpoint.save(tmp_path, 1, awkward, {}))
        assert torch.equal(tensors["t"], base.T)
        assert torch.equal(tensors["row"], base[1])

    def test_saving_an_epoch_again_replaces_it(self, tmp_path: Path) -> None:
        save(tmp_path, 3)
        checkpoint.save(tmp_path, 3, {"b": torch.ones(1)}, {"new": True})
        tensors, state = checkpoint.load(tmp_path / "epoch_000003")
        assert list(tensors) == ["b"]
        assert state == {"new": True}


class TestFolder:
    def test_keeps_the_newest_two(self, tmp_path: Path) -> None:
        for epoch in (1, 2, 9, 10):
            save(tmp_path, epoch)
        assert [p.name for p in checkpoint.all_checkpoints(tmp_path)] == ["epoch_000009", "epoch_000010"]
        assert checkpoint.latest(tmp_path) == tmp_path / "epoch_000010"

    def test_head_epochs_come_before_the_first_epoch(self, tmp_path: Path) -> None:
        for head_epoch in (1, 2, 10):
            checkpoint.save(tmp_path, 0, TENSORS, STATE, keep=9, head_epoch=head_epoch)
        checkpoint.save(tmp_path, 1, TENSORS, STATE, keep=9, head_epoch=10)
        names = [p.name for p in checkpoint.all_checkpoints(tmp_path)]
        assert names == [*(checkpoint.name(0, k) for k in (1, 2, 10)), "epoch_000001"]
        assert checkpoint.latest(tmp_path) == tmp_path / "epoch_000001"
        save(tmp_path, 2)
        assert [p.name for p in checkpoint.all_checkpoints(tmp_path)] == ["epoch_000001", "epoch_000002"]

    def test_leaves_nothing_beside_the_checkpoint(self, tmp_path: Path) -> None:
        path = save(tmp_path, 1)
        assert [p.name for p in tmp_path.iterdir()] == ["epoch_000001"]
        assert sorted(p.name for p in path.iterdir()) == sorted(FILES)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert checkpoint.all_checkpoints(tmp_path / "missing") == []
        assert checkpoint.latest(tmp_path / "missing") is None
        assert checkpoint.latest(tmp_path) is None

    def test_a_failing_write_leaves_the_old_one_and_no_new_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path, 1)
        for name in ("fsync", "replace"):

            def fail(*args: object, **kw: object) -> None:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                with pytest.raises(OSError, match="No space left"):
                    save(tmp_path, 2)
            assert checkpoint.latest(tmp_path) == tmp_path / "epoch_000001"
        assert checkpoint.load(save(tmp_path, 2))[1]["epoch"] == 2


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    def test_a_flip_or_a_cut_at_any_byte_falls_back_to_the_one_before(self, name: str, tmp_path: Path) -> None:
        save(tmp_path, 1)
        file = save(tmp_path, 2) / name
        whole = file.read_bytes()
        harmless = whole.find(b'"epoch": 2, ') if name == "manifest.json" else -1
        for at in range(len(whole)):
            file.write_bytes(whole[:at])
            assert passed_over(tmp_path), f"cut at {at}"
            for bit in (1, 0x20, 0x80):
                file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
                if harmless <= at < harmless + len('"epoch": 2, ') and harmless >= 0:
                    with warnings.catch_warnings():  # the manifest's own epoch is for people; nothing reads it
                        warnings.simplefilter("ignore")
                        assert checkpoint.latest(tmp_path) is not None
                else:
                    assert passed_over(tmp_path), f"bit {bit} of byte {at}"
        file.write_bytes(whole)
        assert checkpoint.latest(tmp_path) == tmp_path / "epoch_000002"

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, name: str, tmp_path: Path) -> None:
        save(tmp_path, 1)
        (save(tmp_path, 2) / name).unlink()
        assert passed_over(tmp_path)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(tmp_path / "epoch_000002")

    def test_all_damaged(self, tmp_path: Path) -> None:
        for epoch in (1, 2):
            (save(tmp_path, epoch) / "state.json").unlink()
        with pytest.warns(UserWarning, match="none is whole, the run begins again") as told:
            assert checkpoint.latest(tmp_path, drop=True) is None
        assert len(told) == 2
        assert checkpoint.all_checkpoints(tmp_path) == []

    def test_the_message_names_the_file(self, tmp_path: Path) -> None:
        file = save(tmp_path, 1) / "weights.safetensors"
        file.write_bytes(file.read_bytes() + b"x")
        with pytest.raises(CheckpointError, match=r"epoch_000001/weights\.safetensors is damaged: its checksum"):
            checkpoint.load(file.parent)

    def test_a_right_checksum_over_wrong_contents(self, tmp_path: Path) -> None:
        path = save(tmp_path, 1)
        (path / "weights.safetensors").write_bytes(b"not safetensors")
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"]["weights.safetensors"] = checkpoint._digest(path / "weights.safetensors")
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.load(path)


def passed_over(folder: Path) -> bool:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        used = checkpoint.latest(folder)
    return used == folder / "epoch_000001" and len(seen) == 1 and "epoch_000002" in str(seen[0].message)


def _write_for_ever(folder: Path) -> None:
    for epoch in range(1, 100_000):
        checkpoint.save(folder, epoch, {"epoch": torch.full((20_000,), float(epoch))}, {"epoch": epoch})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_writing(tmp_path: Path) -> None:
    """Wherever the kill falls, the newest checkpoint is whole and no half one is seen."""
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(folder,))
        writer.start()
        while len(checkpoint.all_checkpoints(folder)) < 2:
            time.sleep(0.001)
        time.sleep(0.013 * attempt)
        writer.kill()
        writer.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            last = checkpoint.latest(folder)
        assert last is not None
        tensors, state = checkpoint.load(last)
        assert last.name == f"epoch_{state['epoch']:06d}"
        assert (tensors["epoch"] == state["epoch"]).all()


class TestSmallFiles:
    def test_write_json_replaces_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        checkpoint.write_json(path, {"x": 1})
        checkpoint.write_json(path, {"x": [1, 2]})
        assert json.loads(path.read_text()) == {"x": [1, 2]}
        with pytest.raises(TypeError):
            checkpoint.write_json(path, {"x": object()})
        assert json.loads(path.read_text()) == {"x": [1, 2]}
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in path.iterdir():
        data = file.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))  # pickle protocol 2 and up; torch.save's zip
    for source in Path(akd.__file__).parent.rglob("*.py"):
        text = source.read_text()
        for word in ("import pickle", "pickle.load", "torch.save(", "weights_only=False", "import joblib"):
            assert word not in text, f"{source.name}: {word}"
        assert text.count("torch.load(") == text.count("weights_only=True"), source.name
