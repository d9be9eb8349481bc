"""Running the akd program as a user does, from a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = """\
# A search that takes seconds.
data: {name: digits, validation: 0.2, subset: 600}
teacher: {name: wrn_16_1, train: {epochs: 2, lr: 0.1}}
student: resnet8
method: {host: {name: kd, temperature: 4.0}}
train: {epochs: 3, batch_size: 64, lr: 0.1, ema: 0.9}
search: {trials: 3, champion_seeds: 2, final_workers: 1, confirm: 0}
space:
  method.host.weight: {type: float, low: 0.5, high: 8.0, log: true}
  train.lr:           {type: float, low: 0.05, high: 0.2, log: true}
"""


def start(
    arguments: list[str], folder: Path, *, before: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """``akd ARGUMENTS`` in ``folder``, in a process group of its own, output in ``folder/out.txt``.

    Args:
        before: a command that runs the program.
    """
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONUNBUFFERED": "1"} | environment
    out = open(folder / "out.txt", "w", encoding="utf-8")  # noqa: SIM115 - the child keeps it
    return subprocess.Popen(
        [*before, sys.executable, "-m", "akd.cli", *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(arguments: list[str], folder: Path, *, timeout: float = 240, **environment: str) -> tuple[int, str]:
    """Exit code and output of ``akd ARGUMENTS``."""
    process = start(arguments, folder, **environment)
    try:
        code = process.wait(timeout)
    finally:
        kill_group(process)
    return code, (folder / "out.txt").read_text(encoding="utf-8")


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the program and everything it started that is still in its group or session."""
    for pid in session_members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def session_members(session: int) -> list[int]:
    """Processes of a session: Ray's servers leave the group but not the session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


#: As /proc writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
#: What a process that accepts connections is, by a word of its command line.
KINDS = {
    "gcs_server": "Ray's control store",
    "raylet/raylet": "Ray's node manager",
    "dashboard.py": "Ray's dashboard",
    "ray-dashboard": "Ray's dashboard",
    "RuntimeEnvAgent": "Ray's agent",
    "DashboardAgent": "Ray's agent",
    "autoscaler/_private/monitor.py": "Ray's monitor",
    "runtime_env": "Ray's agent",
    "dashboard/agent.py": "Ray's agent",
    "RayTrainWorker": "Ray Train worker",
    "ray::": "Ray worker",
    "default_worker.py": "Ray worker",
    "akd.cli": "the search itself",
    "mlflow": "MLflow",
}


@dataclass(frozen=True)
class Listener:
    """Somebody who accepts connections.

    Attributes:
        kind: one of :data:`KINDS`, else the command line.
        outside: can be reached from another machine.
    """

    kind: str
    outside: bool
    pid: int


def listening(pids: list[int]) -> set[Listener]:
    """Which of some processes accept connections."""
    owners = {}
    for pid in pids:
        for handle in (Path("/proc") / str(pid) / "fd").glob("*"):
            with contextlib.suppress(OSError):
                owners[os.readlink(handle).removeprefix("socket:[").removesuffix("]")] = pid
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    found = set()
    for row in rows:
        if row[3] == "0A" and row[9] in owners:
            with contextlib.suppress(OSError):
                pid = owners[row[9]]
                command = (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                kind = next((kind for word, kind in KINDS.items() if word in command), command)
                found.add(Listener(kind, row[1].split(":")[0] not in LOOPBACK, pid))
    return found


def nobody_else_listens(found: set[Listener], outside: int = 0) -> None:
    """All are known, and only torch's rendezvous stores, one a group of workers, can be reached from outside."""
    assert {one.kind for one in found} <= set(KINDS.values()), found
    assert "Ray's control store" in {one.kind for one in found}
    reached = [one.kind for one in found if one.outside]
    # torch's store binds to all interfaces and cannot be told otherwise; it lives in a group's first worker.
    assert reached == ["Ray Train worker"] * outside, found


def wait_for(what: Any, timeout: float = 120, every: float = 0.02) -> Any:
    """Wait until ``what()`` is true and give its value."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(every)
    raise TimeoutError("it did not happen")


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """A run's history without its times: every whole line, in order."""
    found = []
    for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [{k: v for k, v in e.items() if k != "at" and not k.startswith("time/")} for e in found]


def epochs_of(study: Path) -> dict[str, list[dict[str, float]]]:
    """:func:`metrics_of` every run: folder below the study -> epochs."""
    return {str(p.parent.relative_to(study)): metrics_of(p.parent) for p in sorted(study.glob("*/*/history.jsonl"))}


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
