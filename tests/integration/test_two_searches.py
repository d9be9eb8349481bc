"""Two searches on one machine at the same time."""

from __future__ import annotations

from pathlib import Path

import program
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1200)]

SEARCH = ["search", "small.yaml", "--champion-seeds", "1", "--concurrent", "1", "--trials", "4", "--epochs", "6"]
SEARCH += ["--teacher.train.epochs", "8", "--seed", "3"]


def both(first: list[str], second: list[str], folder: Path) -> tuple[str, str]:
    """What two searches say that run at the same time, beside each other."""
    places = folder / "one", folder / "two"
    for place in places:
        place.mkdir(exist_ok=True)
    processes = [program.start(a, p) for a, p in zip((first, second), places, strict=True)]
    try:
        codes = [process.wait(500) for process in processes]
    finally:
        for process in processes:
            program.kill_group(process)
    said = [(place / "out.txt").read_text(encoding="utf-8") for place in places]
    assert codes == [0, 0], said
    return said[0], said[1]


def verified(name: str, output: Path, folder: Path) -> None:
    code, said = program.run(["report", name, "--verify", "--output", str(output)], folder)
    assert code == 0, said
    assert "verified: folders, Optuna and MLflow agree" in said


def test_in_one_output_folder_they_share_the_teacher_and_nothing_else(tmp_path: Path) -> None:
    """Teacher and its outputs are made once; the same search under two names gives the same results."""
    output = tmp_path / "runs"
    arguments = [*SEARCH, "--output", str(output)]
    said = both([*arguments, "--name", "a"], [*arguments, "--name", "b"], tmp_path)
    assert len(list(output.glob("teachers/*/run.json"))) == 1
    # One trained it while the other waited.
    assert sorted("teacher wrn_16_1: found" in text for text in said) == [False, True], said
    assert program.epochs_of(output / "a") == program.epochs_of(output / "b")
    results = [program.read(output / name / "result.json") for name in "ab"]
    assert results[0]["best_trial"] == results[1]["best_trial"]
    made = [r["teacher_passes"]["made"] for r in results]
    asked = [r["teacher_passes"]["made"] + r["teacher_passes"]["saved"] for r in results]
    assert asked[0] == asked[1]
    assert max(made) < asked[0] / 2
    for name in "ab":
        verified(name, output, tmp_path)


def test_in_two_output_folders_they_share_nothing(tmp_path: Path) -> None:
    both([*SEARCH, "--name", "s"], [*SEARCH, "--name", "s"], tmp_path)
    studies = [tmp_path / place / "runs" / "s" for place in ("one", "two")]
    assert program.epochs_of(studies[0]) == program.epochs_of(studies[1])
    for study in studies:
        assert len(list(study.parent.glob("teachers/*/run.json"))) == 1
        verified("s", study.parent, tmp_path)


def test_a_second_of_the_same_name_is_refused_in_one_line(tmp_path: Path) -> None:
    """New, and as one that goes on, while the first is under way; the first notices nothing."""
    process = program.start([*SEARCH, "--name", "s"], tmp_path)
    lines = tmp_path / "runs" / "s" / "controls" / "none" / "history.jsonl"
    other = tmp_path / "other"
    other.mkdir()
    try:
        program.wait_for(lines.exists)
        for arguments, words in (
            ([*SEARCH, "--name", "s"], "exists already"),
            (["search", "--resume", "s"], "is being searched by another process"),
        ):
            code, said = program.run([*arguments, "--output", str(tmp_path / "runs")], other)
            assert code == 2, said
            assert said.count("\n") == 1, said
            assert words in said
        assert process.wait(300) == 0, (tmp_path / "out.txt").read_text()
    finally:
        program.kill_group(process)
    verified("s", tmp_path / "runs", tmp_path)
