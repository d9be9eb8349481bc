"""A tracking server that comes late, is killed, stays away, and asks for a password that nobody else may learn."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import guarded
import program
import pytest
from mlflow import MlflowClient
from server import Server

from akd import folder as run_folder

pytestmark = pytest.mark.ray

SEARCH = ["search", "small.yaml", "--name", "s", "--champion-seeds", "1", "--concurrent", "1"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, program.free_port())
    yield made
    made.kill()


@pytest.fixture
def door(server: Server) -> Iterator[guarded.Door]:
    made = guarded.Door(server.port)
    yield made
    made.close()


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Where Ray writes its logs; short, because it makes sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="akd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def everything_is_there(uri: str) -> None:
    """All runs of the search, once each, ended, with a trial's student."""
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    marks = [r.data.tags["akd.mark"] for r in runs]
    assert len(marks) == len(set(marks)) == 2 + 2 + 3 + 3
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        assert not any(word in str(run.data.tags) + str(run.data.params) for word in guarded.SPELLINGS)
    trial = next(r for r in runs if r.data.tags.get("akd.trial") == "0")
    assert client.list_artifacts(trial.info.run_id, "student")


def commands(session: int, besides: int) -> str:
    """The command lines of a session's processes but one."""
    found = []
    for pid in program.session_members(session):
        with contextlib.suppress(OSError):
            if pid != besides:
                found.append((Path("/proc") / str(pid) / "cmdline").read_text(errors="replace"))
    return "\n".join(found)


@pytest.mark.long
def test_one_that_comes_late_behind_a_password(
    server: Server, door: guarded.Door, sessions: Path, tmp_path: Path
) -> None:
    """It is filled in by the time it is there; the password is in no file, no process list and on no screen."""
    arguments = [*SEARCH, "--tracking-uri", door.uri, "--tracking-later"]
    process = program.start(arguments, tmp_path, RAY_TMPDIR=str(sessions))
    study = tmp_path / "runs" / "s"
    try:
        program.wait_for(lambda: (study / "controls").exists())
        server.start()
        seen = commands(process.pid, process.pid)
        assert "ray" in seen
        assert not any(word in seen for word in guarded.SPELLINGS)
        assert process.wait(200) == 0, (tmp_path / "out.txt").read_text()
        output = (tmp_path / "out.txt").read_text()
        assert "MLflow did not take a write" in output
        assert door.let_in > 50
        everything_is_there(server.uri)
        code, verified = program.run(["report", "s", "--verify", "--tracking-uri", door.uri], tmp_path)
        assert code == 0, verified
        (tmp_path / "said.txt").write_text(output + verified, encoding="utf-8")
        assert "akd ui s --tracking-uri http://127.0.0.1:" in output
    finally:
        program.kill_group(process)
    assert guarded.told(tmp_path, sessions) == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("guard", [False, True], ids=["open", "guarded"])
def test_one_that_is_killed_twice_and_comes_back_for_the_next_session(
    guard: bool, server: Server, door: guarded.Door, tmp_path: Path
) -> None:
    """Back-filled within the session, then away for good: the search ends with its result and says what fills it in."""
    uri = door.uri if guard else server.uri
    server.start(wait=True)
    process = program.start([*SEARCH, "--epochs", "40", "--tracking-uri", uri], tmp_path)
    study = tmp_path / "runs" / "s"
    try:
        program.wait_for(lambda: len(run_folder.history(study / "trials" / "00000")) >= 2)
        server.kill()
        program.wait_for(lambda: "did not take a write" in (tmp_path / "out.txt").read_text())
        server.start(wait=True)
        ended = study / "trials" / "00000" / "mlflow.json"
        program.wait_for(lambda: ended.exists() and next(iter(program.read(ended).values()))["ended"] == "COMPLETE")
        server.kill()
        assert process.wait(300) == 0, (tmp_path / "out.txt").read_text()
        output = (tmp_path / "out.txt").read_text()
        assert (study / "result.json").exists()
        assert "did not take everything; 'akd search --resume s' fills it in" in output
        assert guarded.told(tmp_path / "out.txt", tmp_path / "runs") == []
    finally:
        program.kill_group(process)
    code, output = program.run(["report", "s", "--verify", "--tracking-uri", uri], tmp_path)
    assert code == 1
    assert "folders and Optuna agree, MLflow could not be asked" in output
    server.start(wait=True)
    resume = ["search", "--resume", "s", *(["--tracking-uri", uri] if guard else [])]  # the password is not kept
    code, output = program.run(resume, tmp_path)
    assert code == 0, output
    assert "nothing is trained again" in output
    everything_is_there(server.uri)
    code, output = program.run(["report", "s", "--verify", "--tracking-uri", uri], tmp_path)
    assert code == 0, output
    assert guarded.told(tmp_path / "out.txt", tmp_path / "runs") == []
