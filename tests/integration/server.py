"""A real MLflow server over the default store of a folder, killed and started again at will."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import program


class Server:
    """Before it is started nobody answers at ``uri``.

    Args:
        store: address of its database; default the sqlite file of akd's own store.

    Attributes:
        due: when somebody means to start it again, if so.
    """

    def __init__(self, folder: Path, port: int, store: str | None = None):
        self.folder, self.port, self.uri = folder, port, f"http://127.0.0.1:{port}"
        (folder / "runs").mkdir(exist_ok=True)
        self.store = store or f"sqlite:///{folder}/runs/mlflow.db"
        self.process: subprocess.Popen[bytes] | None = None
        self.due: float | None = None

    def start(self, wait: bool = False) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "runs" / "artifacts")]
        # Not as a flag: a password in it would show in the list of processes.
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": self.store}
        with open(self.folder / "server.txt", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, env=env
            )
        self.due = None
        if wait:
            program.wait_for(self.answers, 90, 0.2)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            for pid in program.session_members(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None
