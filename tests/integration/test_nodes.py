"""Searches on several nodes: lost, taken away, with nothing in common but an S3. Takes minutes: ``make test-long``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import program
import pytest
from bucket import CREDENTIALS, SECRET, Bucket
from nodes import Nodes
from studies import agree, identical

from akd import folder as run_folder

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1200)]

#: So long that a node can be taken away in the middle of a trial.
SEARCH = ["search", "small.yaml", "--name", "s", "--trials", "3", "--epochs", "12", "--scheduler", "none"]
# The same threads wherever a run is: a node has one CPU, this machine more.
SEARCH += ["--champion-seeds", "1", "--seed", "3", "--teacher.train.threads", "1"]
# A Ray of the tests is on loopback, without a token.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with contextlib.closing(Bucket(tmp_path / "bucket.txt")) as one:
        yield one


def epochs(study: Path, pattern: str) -> int:
    return sum(len(run_folder.history(p.parent)) for p in study.glob(f"{pattern}/history.jsonl"))


def searched(
    arguments: list[str], folder: Path, nodes: Nodes, bucket: Bucket, moments: list[tuple[str, int, Callable[[], None]]]
) -> str:
    """What a search says that is disturbed at moments: when runs like this have so many epochs, do that."""
    environment = ENVIRONMENT | CREDENTIALS | {"AKD_STORAGE": bucket.address}
    process = program.start([*arguments, "--ray-address", nodes.address], folder, **environment)
    out = folder / "out.txt"
    try:
        for pattern, count, action in moments:
            program.wait_for(
                lambda p=pattern, c=count: epochs(folder / "runs" / "s", p) >= c or process.poll() is not None, 400
            )
            assert process.poll() is None, out.read_text()
            action()
        assert process.wait(700) == 0, out.read_text()
    finally:
        program.kill_group(process)
    said = out.read_text()
    code, output = program.run(["report", "s", "--verify"], folder)
    assert code == 0, output
    return said


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head that trains nothing and three nodes of one CPU."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(Nodes(tmp_path, 3)) as nodes:
        yield nodes


def alone(folder: Path, *more: str) -> Path:
    """The same search on one machine, undisturbed."""
    folder.mkdir()
    code, output = program.run([*SEARCH, *more], folder, timeout=600)
    assert code == 0, output
    return folder / "runs" / "s"


def test_nodes_lost_in_the_middle_of_trials(tmp_path: Path, three: Nodes, bucket: Bucket) -> None:
    """SIGKILL to a node, then SIGTERM to another as a spot machine gets it, while trials run on both."""
    output = searched(
        [*SEARCH, "--concurrent", "3", "--final-workers", "1"],
        tmp_path,
        three,
        bucket,
        [
            ("controls/*", 3, lambda: three.tell("remove", 1)),
            ("trials/*", 3, lambda: (three.tell("add"), three.tell("term", 2))),
        ],
    )
    study = tmp_path / "runs" / "s"
    agree(study)
    assert "its process died; it goes on after epoch" in output
    assert "Traceback" not in output
    for path in study.glob("*/*/history.jsonl"):
        assert [int(e["epoch"]) for e in run_folder.history(path.parent)] == list(range(1, 13))
    told = {n.removeprefix("akd/s/") for n in bucket.names("akd/s/")}
    assert {"result.json", "report.html", "champion/student.safetensors", "run.json"} <= told


def test_a_node_lost_under_ray_train(tmp_path: Path, three: Nodes, bucket: Bucket) -> None:
    """A trial of two workers on two of three nodes, one of which goes: it goes on on the other two, the same bits."""
    more = ["--workers-per-trial", "2", "--concurrent", "1", "--final-workers", "2"]
    searched(
        [*SEARCH, *more],
        tmp_path,
        three,
        bucket,
        [
            ("controls/none", 2, lambda: three.tell("remove", 1)),
            ("trials/*", 2, lambda: (three.tell("add"), three.tell("term", 2))),
        ],
    )
    study = tmp_path / "runs" / "s"
    agree(study)
    identical(study, alone(tmp_path / "alone", *more))


def test_goes_on_with_another_head(tmp_path: Path, three: Nodes, bucket: Bucket) -> None:
    """The machine that steers is lost with its disk: another one finds the study in the storage."""
    arguments, first = [*SEARCH, "--concurrent", "1", "--final-workers", "1"], tmp_path / "first"
    first.mkdir()
    environment = ENVIRONMENT | CREDENTIALS | {"AKD_STORAGE": bucket.address}
    process = program.start([*arguments, "--ray-address", three.address], first, **environment)
    try:
        program.wait_for(lambda: epochs(first / "runs" / "s", "trials/00001") >= 3, 400)
    finally:
        program.kill_group(process)
    shutil.rmtree(first)
    searched(["search", "--resume", "s"], tmp_path, three, bucket, [])
    study = tmp_path / "runs" / "s"
    agree(study)
    identical(study, alone(tmp_path / "alone", "--concurrent", "1", "--final-workers", "1"))


def test_several_nodes_without_storage_are_refused(tmp_path: Path, three: Nodes) -> None:
    code, output = program.run([*SEARCH, "--ray-address", three.address], tmp_path, **ENVIRONMENT)
    assert code == 2
    assert "has 4 nodes; what they share must be named: --storage s3://BUCKET/FOLDER" in output
    assert not (tmp_path / "runs" / "s").exists()


def test_a_node_that_cannot_use_the_storage_is_named(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    sessions = set(Path("/tmp/ray").glob("session_2*"))  # of Rays whose nodes had it in their environment
    with contextlib.closing(Nodes(tmp_path, 2)) as nodes:
        environment = ENVIRONMENT | CREDENTIALS | {"AKD_STORAGE": bucket.address}
        code, output = program.run([*SEARCH, "--ray-address", nodes.address], tmp_path, **environment)
        assert code == 2, output
        assert "cannot be used on node 127.0.0.1" in output
        assert not (tmp_path / "runs" / "s").exists()
        assert not bucket.names("akd/s/")
        # With credentials in the address every node learns them, and no file does.
        address = bucket.address.replace("s3://", f"s3://AKIDTEST:{SECRET.replace('/', '%2F').replace('+', '%2B')}@")
        folder = tmp_path / "given"
        folder.mkdir()
        environment = ENVIRONMENT | {"AKD_STORAGE": address}
        short = ["1" if word == "12" else word for word in SEARCH]  # epochs
        code, output = program.run(
            [*short, "--ray-address", nodes.address, "--final-workers", "1"], folder, timeout=500, **environment
        )
        assert code == 0, output
        places = [folder / "runs", *(set(Path("/tmp/ray").glob("session_2*")) - sessions)]
        secrets = [SECRET, SECRET.replace("/", "%2F").replace("+", "%2B")]
        for secret in secrets:
            found = subprocess.run(
                ["grep", "-rlF", "--", secret, *map(str, places)], capture_output=True, text=True, check=False
            )
            assert found.stdout == ""
            assert secret not in output


def test_a_spot_machine_that_is_told_to_end(tmp_path: Path, three: Nodes, bucket: Bucket) -> None:
    """SIGTERM to a process of a trial alone: it is gone at once, and the trial goes on elsewhere."""

    def term() -> None:
        members = program.session_members(three.process.pid)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                mine = int(entry.name) in members if entry.name.isdigit() else False
                if mine and b"ray::ImplicitFunc" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGTERM)

    output = searched(
        [*SEARCH, "--concurrent", "1", "--final-workers", "1"], tmp_path, three, bucket, [("trials/00000", 2, term)]
    )
    assert re.search(r"trial \d: its process died; it goes on", output), output  # by then it may have another
    agree(tmp_path / "runs" / "s")
    identical(tmp_path / "runs" / "s", alone(tmp_path / "alone", "--concurrent", "1", "--final-workers", "1"))
