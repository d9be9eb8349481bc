"""``akd ui``: MLflow on loopback, at this project's runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from akd.addresses import check_tracking
from akd.errors import AkdError, ExperimentError, Interrupted, near
from akd.folder import Run
from akd.logged import default_uri, logged_as, scrubbed
from akd.trials_view import key_of

#: Else MLflow's pages open among the tools for language models.
_TRAINING = "workflowType=machine_learning"


def study_address(output: Path, study: str, store: str, base: str) -> str:
    """The page of a study's parent run in the tracking store, running or finished.

    Raises:
        ExperimentError: no such study.
    """
    names = sorted(p.parent.name for p in output.glob("*/run.json"))
    if study not in names:
        hint = near(study, names) or (f", there are {', '.join(names)}" if names else "")
        raise ExperimentError(f"there is no study of this name in {output}{hint}", key="study", value=study)
    experiment, run = logged_as(output / study, store)
    return f"{base}/#/experiments/{experiment}/runs/{run}?{_TRAINING}" if run else base


def trials_address(output: Path, study: str, store: str, base: str) -> str:
    """The page that lists a study's trials, the best first; empty where there is none."""
    experiment, run = logged_as(output / study, store)
    own = Run.read(output / study)
    if not run or own is None or own.kind != "study":
        return ""
    return f"{base}/#/experiments/{experiment}/runs?{_TRAINING}&viewStateShareKey={key_of(study)}"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def serve(output: Path, study: str | None, port: int, tracking_uri: str | None, say: Callable[[str], None]) -> None:
    """Run an MLflow server on 127.0.0.1 until it is told to end.

    Args:
        output: folder of studies and default store.
        study: whose page to name; ``None`` for the newest.
        tracking_uri: for a server elsewhere: its pages are named, nothing is started.

    Raises:
        ExperimentError: nothing to show, unknown study, port taken.
        Interrupted: told to end.
        AkdError: the server ended by itself.
    """
    output = output.absolute()
    if not 0 < port < 65536:
        raise ExperimentError("must be a whole number from 1 to 65535", key="port", value=port)
    if tracking_uri:
        check_tracking(tracking_uri, output)
    if study is None:
        known = sorted(output.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
        study = known[-1].parent.name if known else None
    store = tracking_uri or default_uri(output)
    if tracking_uri and tracking_uri.startswith("http"):
        base = scrubbed(tracking_uri).rstrip("/")
        say(study_address(output, study, store, base) if study else base)
        if study and (trials := trials_address(output, study, store, base)):
            say(f"its trials, the best first: {trials}")
        return
    if not tracking_uri and not (output / "mlflow.db").exists():
        raise ExperimentError("holds no runs yet; start a search first", key="output", value=str(output))
    base = f"http://127.0.0.1:{port}"
    address = study_address(output, study, store, base) if study else base
    if not _free(port):
        raise ExperimentError("is in use on 127.0.0.1; choose another", key="port", value=port)
    say(f"MLflow at {address}   (end it with Ctrl-C)")
    if study and (trials := trials_address(output, study, store, base)):
        say(f"its trials, the best first: {trials}")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # The address travels in the environment: a password in it must not show in the list of processes.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store}
    # Its start-up chatter would hide the address above.
    environment |= {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    # Its workers for language-model jobs take a gigabyte and have nothing to do here.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= {"MLFLOW_DEFAULT_ARTIFACT_ROOT": (output / "artifacts").as_uri()}
    _run(command, environment)


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    """Run a server until it ends or this process is told to.

    In a group of its own: a Ctrl-C would reach all its processes at once, and each would show where it was.
    """

    server: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        if server is not None:  # not while it is being started: it would be left behind
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        server = subprocess.Popen(command, env=environment, process_group=0)
        code = 0 if told else server.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        if server is not None:
            _end(server)
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise Interrupted("MLflow has ended")
    if code:
        raise AkdError(f"MLflow's server ended by itself, with code {code}")


def _end(server: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """End a process and all of its group: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            server.poll()  # a process that has ended stays in its group until it is waited for
            try:
                os.killpg(server.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
