"""The script for a GPU, as far as it goes on a CPU: parts, runs that resume, the table."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import gpu
import pytest


def test_parts_are_joined_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in" / "cifar-100-python"
    source.mkdir(parents=True)
    for name in gpu.FILES:
        (source / name).write_bytes(pickle.dumps(list(range(1000))) + name.encode())
    monkeypatch.setattr(gpu, "PART", 1000)
    paths = gpu.cut(tmp_path / "in", tmp_path / "parts")
    assert len(paths) > 1
    assert all(p.stat().st_size <= 1200 for p in paths)
    assert [gpu.join(p, tmp_path / "work") for p in reversed(paths)] == [False] * (len(paths) - 1) + [True]
    for name in gpu.FILES:
        assert (tmp_path / "work/data/cifar-100-python" / name).read_bytes() == (source / name).read_bytes()


def test_a_part_of_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PART", 100)
    for folder in ("a", "b"):
        source = tmp_path / folder / "cifar-100-python"
        source.mkdir(parents=True)
        for name in gpu.FILES:
            (source / name).write_bytes(folder.encode() * 50)
    a, b = gpu.cut(tmp_path / "a", tmp_path / "pa"), gpu.cut(tmp_path / "b", tmp_path / "pb")
    for part in (a[0], *b[1:-1]):
        gpu.join(part, tmp_path / "work")
    with pytest.raises(SystemExit, match="belong together"):
        gpu.join(b[-1], tmp_path / "work")


def test_runs_resume_and_are_extrapolated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "NETWORKS", {"teacher": "wrn_16_1", "angular": "resnet8"})
    common = ["--work", str(tmp_path), "--device", "cpu", "--images", "100"]

    def train(what: str, epochs: int, *more: str) -> dict[str, float]:
        gpu.main(["train", *common, "--what", what, "--epochs", str(epochs), *more])
        found = json.loads((tmp_path / "results.json").read_text())
        return found[f"{what}-{epochs}{'-final' * ('--final' in more)}"]

    with pytest.raises(SystemExit, match="teacher first"):
        train("angular", 1)
    assert train("teacher", 2, "--minutes", "0")["done"] == 1
    assert "1 epochs left" in capsys.readouterr().out
    assert train("teacher", 2)["done"] == 2
    assert train("teacher", 1)["done"] == 1
    assert train("angular", 1)["heads_s"] > 0
    assert train("angular", 2, "--final")["test/accuracy"] >= 0
    capsys.readouterr()
    gpu.main(["report", *common])
    out = capsys.readouterr().out
    assert "teacher: " in out
    assert "angular: " in out
    assert "minutes for 240 epochs" in out


def test_variants_of_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "NETWORKS", {"teacher": "wrn_16_1", "angular": "resnet8"})

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(gpu.torch, "compile", broken)
    gpu.main(["step", "--work", str(tmp_path), "--device", "cpu", "--steps", "1", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "failed: RuntimeError: no compiler" in out
    assert out.count("ms a step,") == 4
