"""Searches that are stopped, killed or unlucky: what they leave, and how they go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import program
import pytest
from studies import ONE, agree, identical

from akd import folder as run_folder
from akd.searcher import open_study

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = program.run(ONE, folder)
    assert code == 0, output
    return folder / "runs" / "s"


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("epoch_*"))[-1]


def truncate(run: Path) -> list[str]:
    """Half of the newest weights and of the last line; what the user must be told."""
    weights = newest(run) / "weights.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    lines = run / "history.jsonl"
    os.truncate(lines, lines.stat().st_size - 20)
    return [f"warning: {weights} is damaged: its checksum differs from the manifest; epoch_0"]


def flip(run: Path) -> list[str]:
    """One bit of the newest weights."""
    weights = newest(run) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return [f"warning: {weights} is damaged: its checksum differs from the manifest; epoch_0"]


def ruin(run: Path) -> list[str]:
    """All checkpoints, in two other ways."""
    told = []
    for number, path in enumerate(sorted((run / "checkpoints").glob("epoch_*"))):
        if number % 2:
            (path / "state.json").write_bytes(b"")
            told.append(f"warning: {path}/state.json is damaged: its checksum differs from the manifest; none is whole")
        else:
            (path / "manifest.json").unlink()
            told.append(f"warning: {path} cannot be read: [Errno 2]")
    assert told
    return told


def nothing(run: Path) -> list[str]:
    return []


#: Where a session ends (a file of the run that is under way, and how many lines it has by then), how, and what happens
#: to the run before the next session.
MOMENTS: list[tuple[str, int, int, Callable[[Path], list[str]]]] = [
    ("teachers/*/history.jsonl", 1, signal.SIGTERM, nothing),
    ("s/controls/none/history.jsonl", 2, signal.SIGKILL, truncate),
    ("s/trials/00000/history.jsonl", 2, signal.SIGKILL, ruin),
    ("s/trials/00003/experiment.yaml", 1, signal.SIGKILL, nothing),
    ("s/finals/champion-seed4/history.jsonl", 2, signal.SIGKILL, flip),
]


@pytest.mark.parametrize("moments", [MOMENTS[::2], pytest.param(MOMENTS, marks=pytest.mark.long)])
def test_stopped_again_and_again_equals_undisturbed(
    moments: list[tuple[str, int, int, Callable[[Path], list[str]]]], undisturbed: Path, tmp_path: Path
) -> None:
    """In the teacher, in a control, in two trials, in a final run; with checkpoints damaged in between."""
    study = tmp_path / "runs" / "s"

    def lines(pattern: str, count: int) -> bool:
        return any(len(p.read_text().splitlines()) >= count for p in (tmp_path / "runs").glob(pattern))

    arguments, warned = ONE, []
    for pattern, count, how, damage in moments:
        process = program.start(arguments, tmp_path)
        try:
            program.wait_for(partial(lines, pattern, count))
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            if how != signal.SIGKILL:
                os.kill(process.pid, how)
                assert process.wait(60) == 130, (tmp_path / "out.txt").read_text()
                assert "akd search --resume s" in (tmp_path / "out.txt").read_text()
        finally:
            program.kill_group(process)
        output = (tmp_path / "out.txt").read_text()
        assert all(any(line.startswith(words) for line in output.splitlines()) for words in warned), (warned, output)
        assert "Traceback" not in output
        (run,) = [p.parent for p in (tmp_path / "runs").glob(pattern)]
        warned = damage(run)
        arguments = ["search", "--resume", "s"]
    code, output = program.run(arguments, tmp_path)
    assert code == 0, output
    assert all(any(line.startswith(words) for line in output.splitlines()) for words in warned), (warned, output)
    for path in study.glob("*/*/history.jsonl"):
        epochs = [int(e["epoch"]) for e in run_folder.history(path.parent)]
        assert epochs == list(range(1, len(epochs) + 1)), path
    identical(study, undisturbed)
    agree(study)


def test_ctrl_c_keeps_the_state_and_names_the_command(tmp_path: Path) -> None:
    arguments = [a if a != "4" else "30" for a in ONE]
    process = program.start(arguments, tmp_path)
    study = tmp_path / "runs" / "s"
    try:
        program.wait_for(lambda: len(run_folder.history(study / "trials" / "00000")) >= 2)
        program.nobody_else_listens(program.listening(program.session_members(process.pid)))
        assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        output = (tmp_path / "out.txt").read_text()
    finally:
        program.kill_group(process)
    assert "akd search --resume s" in output
    assert "Traceback" not in output
    run = run_folder.Run.read(study / "trials" / "00000")
    assert run is not None
    assert run.state == run_folder.RUNNING


def test_a_terminated_single_run_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGTERM, as batch systems send it, while the teacher is trained; SIGHUP of a lost connection while the student
    is."""
    arguments = [
        "train",
        "small.yaml",
        "--workers",
        "1",
        "--epochs",
        "60",
        "--name",
        "s",
        "--teacher.train.epochs",
        "6",
    ]
    moments = {signal.SIGTERM: "runs/teachers/*/history.jsonl", signal.SIGHUP: "runs/s/history.jsonl"}
    for number, history in moments.items():
        process = program.start(arguments, tmp_path)
        try:
            program.wait_for(lambda history=history: list(tmp_path.glob(history)))
            os.kill(process.pid, number)
            assert process.wait(60) == 130
        finally:
            program.kill_group(process)
        output = (tmp_path / "out.txt").read_text()
        assert "akd train --resume s" in output
        assert "Traceback" not in output
        arguments = ["train", "--resume", "s"]


def test_killed_worker_is_replaced_and_its_trial_continues(undisturbed: Path, tmp_path: Path) -> None:
    process = program.start(ONE, tmp_path)
    study = tmp_path / "runs" / "s"
    try:
        program.wait_for(lambda: len(run_folder.history(study / "trials" / "00000")) >= 1)
        workers = [
            pid
            for pid in program.session_members(process.pid)
            if b"ray::" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
            and b"ImplicitFunc" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
        ]
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(200) == 0, (tmp_path / "out.txt").read_text()
    finally:
        program.kill_group(process)
    output = (tmp_path / "out.txt").read_text()
    assert "its process died; it goes on" in output
    assert "Traceback" not in output
    assert program.epochs_of(study) == program.epochs_of(undisturbed)
    agree(study)


def test_diverging_trials_are_failed_with_their_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    space = program.SMALL.replace("high: 0.2", "high: 1.0e+9").replace("trials: 3", "trials: 6")
    (tmp_path / "wild.yaml").write_text(space, encoding="utf-8")
    arguments = ["search", "wild.yaml", "--name", "w", "--sampler", "random", "--champion-seeds", "1", "--seed", "1"]
    code, output = program.run(arguments, tmp_path)
    assert code == 0, output
    runs = [run_folder.Run.read(p.parent) for p in sorted((tmp_path / "runs/w/trials").glob("*/run.json"))]
    failed = [r for r in runs if r is not None and r.state == run_folder.FAILED]
    assert len(runs) == 6
    assert failed
    for run in failed:
        assert run.reason is not None
        assert "diverged in epoch" in run.reason
    told = open_study(tmp_path / "runs/w/optuna.log", "w")
    assert [t.state.name for t in told.trials] == [
        {"FAILED": "FAIL"}.get(r.state, r.state) for r in runs if r is not None
    ]
    assert "failed" in output
    assert "diverged" in output
