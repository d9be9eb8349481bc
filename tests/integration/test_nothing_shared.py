"""Two nodes that share nothing but an S3: each sees a disk of its own. Takes minutes: ``make test-long``."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nodes
import program
import pytest
from bucket import CREDENTIALS, Bucket
from nodes import Nodes
from studies import agree, identical

from akd import folder as run_folder

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1500)]

ENVIRONMENT = CREDENTIALS | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ROOT = os.geteuid() == 0
_UNSHARE = [
    "unshare",
    *([] if _ROOT else ["--user", "--map-current-user", "--keep-caps"]),
    "--mount",
    "--pid",
    "--fork",
]
_UNSHARE += ["--kill-child", "--mount-proc"]
SEARCH = ["search", "small.yaml", "--name", "s", "--trials", "3", "--epochs", "4", "--scheduler", "none"]
SEARCH += ["--champion-seeds", "1", "--seed", "3", "--teacher.train.threads", "1"]


class Apart:
    """A head that trains nothing, and two nodes with a home, a Ray folder and a view of the disk of their own.

    Args:
        folder: for logs and homes.
        hidden: what the nodes do not see: the folder of whoever steers.
    """

    def __init__(self, folder: Path, hidden: Path):
        self.folder, self.hidden = folder, hidden
        self.processes: list[subprocess.Popen[bytes]] = []
        self.homes = [folder / f"home{k}" for k in range(2)]
        self.head = Nodes(folder, 0)
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        for home in self.homes:
            (home / "ray").mkdir(parents=True)
            steps = [f"mount --bind {shlex.quote(str(home / 'ray'))} /tmp/ray"]
            steps += [f"mount -t tmpfs tmpfs {shlex.quote(str(self.hidden))}"]
            steps += [f"exec {shlex.join([sys.executable, nodes.__file__, 'join', self.head.address])}"]
            environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | ENVIRONMENT
            with open(self.folder / f"{home.name}.txt", "wb") as log:
                process = subprocess.Popen(
                    [*_UNSHARE, "sh", "-c", " && ".join(steps)],
                    env=environment | {"HOME": str(home)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.processes.append(process)
            program.wait_for(lambda home=home: b"joined" in (self.folder / f"{home.name}.txt").read_bytes(), 120)

    def close(self) -> None:
        """End all of it."""
        for process in self.processes:
            for pid in program.session_members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(30)
        self.head.close()


@pytest.fixture
def steers(tmp_path: Path) -> Path:
    (tmp_path / "steers").mkdir()
    return tmp_path / "steers"


@pytest.fixture
def apart(tmp_path: Path, steers: Path) -> Iterator[Apart]:
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces are not permitted here")
    with contextlib.closing(Apart(tmp_path, steers)) as one:
        yield one


@pytest.mark.parametrize("workers", [1, 2])
def test_the_search_is_that_of_one_machine(workers: int, tmp_path: Path, steers: Path, apart: Apart) -> None:
    more = ["--workers-per-trial", str(workers), "--final-workers", str(workers), "--concurrent", "1"]
    with contextlib.closing(Bucket(tmp_path / "bucket.txt")) as bucket:
        environment = ENVIRONMENT | {"AKD_STORAGE": bucket.address}
        code, output = program.run(
            [*SEARCH, *more, "--ray-address", apart.head.address], steers, timeout=900, **environment
        )
        assert code == 0, output
        kept = {name.removeprefix("akd/") for name in bucket.names()}
    study = steers / "runs" / "s"
    agree(study)
    assert "Traceback" not in output
    # What is needed to go on, and what is handed over, is in the storage; so is what the teacher said.
    folders = [p.parent.relative_to(steers / "runs").as_posix() for p in study.glob("*/*/run.json")]
    for folder in folders:
        last = len(run_folder.history(steers / "runs" / folder))
        assert {f"{folder}/{name}" for name in ("experiment.yaml", "run.json", "history.jsonl")} <= kept
        assert f"{folder}/checkpoints/epoch_{last:06d}/manifest.json" in kept
    assert {"s/champion/student.safetensors", "s/champion/config.json", "s/result.json", "s/report.html"} <= kept
    assert any(name.startswith("cache/") for name in kept)
    # The nodes have kept nothing of a run, and seen nothing of the machine that steers.
    for home in apart.homes:
        left = [p for p in home.rglob("*") if p.is_file() and p.name in ("run.json", "history.jsonl")]
        assert left == []
    here = tmp_path / "alone"
    here.mkdir()
    code, output = program.run([*SEARCH, *more], here, timeout=900)
    assert code == 0, output
    identical(study, here / "runs" / "s")
