"""Ray, as akd uses it: where it runs, what it holds, and the settings that must be in place before it is imported."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from akd import reach
from akd.config import SearchConfig
from akd.errors import AkdError, ExperimentError, many
from akd.logged import scrubbed
from akd.places import check_shared, coming, everything, share
from akd.signals import held_back

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A failed trial reports its reason and no accuracy.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # A process that died with its node is told of in a line, without Tune's stack.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # A stopped trial's workers may take their time to end. A process that is not free within Tune's two seconds is
    # given up, and with it, without a word to the searcher, the trial that was to be next.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    "TUNE_WARN_THRESHOLD_S": "30",
    # Tune's snapshots hold every trial of a search and are never read here: one at the end, not one every ten seconds.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # How soon Ray Train sees that workers have ended or died; its default adds two seconds to every run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
#: Only for a Ray of akd's own, all of which is on this machine.
_LOCAL = {
    # Ray binds its servers to every interface even on a loopback node; this keeps a local Ray to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The same for the workers' connections among themselves.
    "GLOO_SOCKET_IFNAME": "lo",
    # A process that watches for nodes being taken away: this machine is the only one.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
#: Only for a Ray that may start nodes, which takes minutes.
_JOINED = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200"}


#: The resource that only the head of a cluster has: what steers runs there survives the loss of any other node.
HEAD = "node:__internal_head__"


def connect(address: str | None) -> bool:
    """Start a private Ray, or join the one at ``address`` (default ``$RAY_ADDRESS``).

    Returns:
        True if the Ray was started here and should be shut down afterwards.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    settings = _SETTINGS | (_LOCAL if local else _JOINED)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if local:
        protect_token()
    import ray

    if local:
        _forget_dead_cluster()

    # Processes of a private Ray inherit this one's environment; those of another have to be told.
    runtime = None if local else {"env_vars": {k: os.environ[k] for k in settings} | {"RAY_ADDRESS": address}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # By itself Ray counts CPUs this process may not use.
            cpus = int(machine()["CPU"]) if local else None
            with held_back(), _kept_from_ray():
                ray.init(
                    address=address,
                    num_cpus=cpus,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env=runtime,
                )
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            raise ExperimentError(
                f"no Ray answers there: {str(error).splitlines()[0]}", key="ray-address", value=address
            ) from None
        except ray.exceptions.AuthenticationError as error:
            problem = f"asks for its token: {str(error).splitlines()[0].partition('. ')[0]}"
            raise ExperimentError(problem, key="ray-address", value=address) from None
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A stale address from the environment would lead every child process to another cluster.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return local


def _forget_dead_cluster(path: Path | None = None) -> None:
    """Remove Ray's note of a cluster on this machine that is gone.

    Processes of Ray Train that look after killed workers ask whoever it names; a dead one costs every run its time-out.

    Args:
        path: default Ray's own.
    """
    from ray._private.utils import get_ray_address_file

    path = path or Path(get_ray_address_file(None))
    try:
        host, _, port = path.read_text(encoding="utf-8").strip().rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
    except FileNotFoundError:
        return
    except (OSError, ValueError, OverflowError):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _kept_from_ray() -> Iterator[None]:
    """Within the block Ray sets no handler of SIGTERM: its own ends the process, with the study marked as failed.

    And it gets no passwords: it keeps the command that it was started by, in its tables and on its pages.
    """
    from ray._private import utils

    handle, command = utils.set_sigterm_handler, utils.get_entrypoint_name
    utils.set_sigterm_handler = lambda handler: None
    utils.get_entrypoint_name = lambda: scrubbed(command(), *sys.argv)
    try:
        yield
    finally:
        utils.set_sigterm_handler, utils.get_entrypoint_name = handle, command


def check_state_api(seconds: float = 30.0) -> None:
    """Make sure that Ray's State API answers: without it the resources of a killed group of workers stay taken.

    Raises:
        AkdError: silence for ``seconds``.
    """
    from ray.util.state import list_nodes

    end = time.monotonic() + seconds
    while True:
        try:
            list_nodes(limit=1, timeout=5, raise_on_missing_output=False)
        except Exception as error:
            if time.monotonic() > end:
                raise AkdError(
                    "Ray's State API does not answer, and several workers need it: start Ray with its dashboard, "
                    f"from ray[default] ({str(error).splitlines()[0]})"
                ) from None
            time.sleep(0.5)
        else:
            return


def protect_token(path: Path | None = None) -> None:
    """Make the file of Ray's token readable by its owner alone, before Ray would make it readable by all.

    Args:
        path: default ``$RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``.
    """
    path = path or Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def disconnect() -> None:
    """Leave Ray; a private one ends."""
    import ray

    ray.shutdown()
    os.environ.pop("RAY_ADDRESS", None)


def machine() -> dict[str, float]:
    """What a private Ray on this machine holds: the CPUs this process may use, and the GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0))
    try:  # a container's share: microseconds of CPU in a period of microseconds
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit
        pass
    return {"CPU": float(cpus), "GPU": float(torch.cuda.device_count())}


def check(
    search: SearchConfig,
    address: str | None,
    batch_sizes: Sequence[int] = (),
    *,
    fewer: bool = False,
    shared: str | None = None,
) -> None:
    """Refuse what the machines cannot place, before anything is written: a private Ray need not be started for that.

    Args:
        search: what a trial asks for.
        address: as in :func:`connect`.
        batch_sizes: of the runs that take everything there is.
        fewer: take ``search.concurrent`` as the most, as a study does that goes on elsewhere.
        shared: storage that nodes share.

    Raises:
        ExperimentError: a trial fits on no node, fewer trials fit at once than are asked for, no Ray answers, several
            nodes share nothing.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        found = [machine()]
        reach.check_here(shared)
    else:
        found = _nodes_at(address, shared)
    resources = share(search, found)
    for batch_size in batch_sizes:
        everything(search, found, batch_size)
    if search.concurrent and resources.concurrent < search.concurrent and not fewer:
        raise ExperimentError(
            f"at most {resources.concurrent} fit at a time: a trial takes {many(resources.cpus, 'CPU')} and "
            f"{many(resources.gpus, 'GPU')}, there are {sum(n.get('CPU', 0) for n in found):g} and "
            f"{sum(n.get('GPU', 0) for n in found):g}",
            key="search.concurrent",
            value=search.concurrent,
        )


def _nodes_at(address: str, shared: str | None) -> list[dict[str, float]]:
    """The nodes of a Ray that runs elsewhere, which all can use the storage; this process stays unconnected."""
    from akd.addresses import check_ray

    check_ray(address)
    before = os.environ.get("RAY_ADDRESS")
    connect(address)
    try:
        found = all_nodes()
        check_shared(found, shared)
        reach.check_reached(shared)
        return found
    finally:
        disconnect()
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def nodes() -> list[dict[str, float]]:
    """Resources of the living nodes of the Ray this process is connected to."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def all_nodes() -> list[dict[str, float]]:
    """Resources of the living nodes, and of those that Ray may start when trials ask for them.

    ``$AKD_CLUSTER_FILE`` names the file that Ray starts nodes by; cluster files set it on their head.
    """
    import ray

    alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    path = os.environ.get("AKD_CLUSTER_FILE")
    return alive + coming(Path(path).expanduser(), len(alive) - 1) if path else alive
