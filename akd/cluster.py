"""Ray, as akd uses it: where it runs, what it holds, and the settings that must be in place before it is imported."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from akd import storage
from akd.config import SearchConfig
from akd.errors import AkdError, ExperimentError, many, reason
from akd.logged import scrubbed
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
#: Fewer images than this keep no worker busy; the teacher and the final runs take no more workers than that allows.
_LEAST_SHARE = 16


@dataclass(frozen=True)
class Team:
    """The workers of one run.

    Attributes:
        size: how many.
        cpus, gpus: of each.
    """

    size: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Resources:
    """What one trial gets and how many fit.

    Attributes:
        cpus, gpus: of one trial, all its workers together.
        concurrent: trials at a time.
        workers: of one trial.
    """

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1

    @property
    def team(self) -> Team | None:
        """The workers of a trial that has several."""
        return Team(self.workers, self.cpus / self.workers, self.gpus / self.workers) if self.workers > 1 else None


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


def check_reached(shown: str) -> None:
    """Have every node that can train try the storage: else its runs would fail, one after the other.

    Raises:
        ExperimentError: a node cannot read it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task: Any = ray.remote(_reaches)
            asked[node["NodeManagerAddress"]] = task.options(num_cpus=0, scheduling_strategy=there).remote(shown)
    for address, answer in asked.items():
        if (why := ray.get(answer)) is not None:
            raise ExperimentError(f"cannot be used on node {address}: {why}", key="storage", value=shown)


def _reaches(shown: str) -> str | None:
    learn(shown)
    return storage.Storage(shown, patience_s=10).tried()


def hand_on(shown: str | None) -> None:
    """Let the processes of this Ray learn the credentials in the address of a storage: from the memory of Ray's own
    server, so that no file, log or page shows them."""
    secret = storage.known(shown) if shown else None
    if secret:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(_kept_under(shown), secret.encode(), overwrite=True)


def learn(shown: str | None) -> None:
    """Learn the credentials in the address of a storage that :func:`hand_on` left, if there are any."""
    if shown and storage.known(shown) is None:
        from ray.experimental.internal_kv import _internal_kv_get

        if secret := _internal_kv_get(_kept_under(shown)):
            storage.admit(secret.decode())


def _kept_under(shown: str | None) -> bytes:
    return f"akd storage {shown}".encode()


def disconnect() -> None:
    """Leave Ray; a private one ends."""
    import ray

    ray.shutdown()
    os.environ.pop("RAY_ADDRESS", None)


def share(search: SearchConfig, nodes: list[dict[str, float]]) -> Resources:
    """What a trial gets on these nodes, and how many trials fit at once.

    Args:
        nodes: the ``CPU`` and ``GPU`` of each node.

    Raises:
        ExperimentError: a trial, or one of its workers, fits on no node; fewer places than workers.
    """
    workers = search.workers_per_trial
    any_gpu = any(n.get("GPU", 0) for n in nodes)
    asked = None if search.gpus_per_trial == "auto" else search.gpus_per_trial  # auto: one, until it is measured
    # Of each worker.
    gpus = float(asked) / workers if asked is not None else float(any_gpu)
    # Two workers of one run cannot share a GPU: their collectives would wait for each other.
    if workers > 1 and gpus % 1:
        raise ExperimentError(
            f"must be a whole number for each of {workers} workers",
            key="search.gpus_per_trial",
            value=search.gpus_per_trial,
        )
    if gpus > 1 and gpus % 1:
        problem, value = "must be a part of one GPU or a whole number", search.gpus_per_trial
        raise ExperimentError(problem, key="search.gpus_per_trial", value=value)
    # The least share of CPUs that goes with these GPUs on a node that has them: then every GPU is used.
    shares = [n.get("CPU", 0) * gpus // n["GPU"] for n in nodes if gpus and n.get("GPU", 0) >= gpus]
    cpus = search.cpus_per_trial / workers if search.cpus_per_trial else max(1.0, min(shares, default=1.0))
    places = [_places(n, cpus, gpus) for n in nodes]
    if sum(places) < 1:
        most = {k: max((n.get(k, 0) for n in nodes), default=0) for k in ("CPU", "GPU")}
        key, value, have = ("cpus_per_trial", cpus, most["CPU"])
        if gpus and gpus > most["GPU"]:
            key, value, have = ("gpus_per_trial", gpus, most["GPU"])
        total = value * workers
        each = f"; {value:g} for each of {workers} workers" if workers > 1 else ""
        raise ExperimentError(
            f"fits on no node; the largest has {many(have, key[:3].upper())}{each}",
            key=f"search.{key}",
            value=int(total) if total == int(total) else total,
        )
    if sum(places) < workers:
        what = f"{many(gpus, 'GPU')} and {many(cpus, 'CPU')}" if gpus else many(cpus, "CPU")
        raise ExperimentError(
            f"must be at most {sum(places)} here, with {what} for each worker",
            key="search.workers_per_trial",
            value=workers,
        )
    room = sum(places) // workers  # workers of one trial may sit on several nodes
    return Resources(cpus * workers, gpus * workers, min(room, search.concurrent or room), workers)


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    counts = [int(node.get("CPU", 0) / cpus + 1e-9)]
    if gpus:
        each, whole = int(1 / gpus + 1e-9), int(node.get("GPU", 0))  # a part of a GPU is of one of them
        counts.append(whole * each if gpus < 1 else int(whole / gpus + 1e-9))
    return min(counts)


def everything(search: SearchConfig, nodes: list[dict[str, float]], batch_size: int) -> Team:
    """The workers of a run that has the whole cluster to itself: one for each GPU, or an even share of the CPUs each.

    Args:
        batch_size: of the run; a worker gets 16 images at least.

    Raises:
        ExperimentError: ``search.final_workers`` is more than there is place for, or than a batch has images.
    """
    gpus = [int(n.get("GPU", 0)) for n in nodes]
    if sum(gpus):
        cpus = min(n.get("CPU", 0) // int(n["GPU"]) for n in nodes if int(n.get("GPU", 0)))
        places, one = sum(gpus), Team(1, max(1.0, cpus), 1.0)
    else:
        places, one = sum(int(n.get("CPU", 0)) for n in nodes), Team(1, 1.0, 0.0)
    size = search.final_workers or max(1, min(places, batch_size // _LEAST_SHARE))
    if size > places:
        raise ExperimentError(
            f"must be at most {places} here, one for each {'GPU' if sum(gpus) else 'CPU'}",
            key="search.final_workers",
            value=size,
        )
    if size > batch_size:
        problem = f"must be at most {batch_size}, an image of each batch for each"
        raise ExperimentError(problem, key="search.final_workers", value=size)
    if sum(gpus):
        return replace(one, size=size)
    # As many CPUs for each as leave places for all: nodes may be uneven.
    cpus = next(c for c in range(places // size, 0, -1) if sum(_places(n, c, 0) for n in nodes) >= size)
    return Team(size, float(cpus), 0.0)


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
    found = [machine()] if address == "local" else _nodes_at(address)
    check_shared(found, shared)
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


def _nodes_at(address: str) -> list[dict[str, float]]:
    """The nodes of a Ray that runs elsewhere; this process stays unconnected."""
    from akd.addresses import check_ray

    check_ray(address)
    before = os.environ.get("RAY_ADDRESS")
    connect(address)
    try:
        return all_nodes()
    finally:
        disconnect()
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def check_shared(nodes: Sequence[Mapping[str, float]], shared: str | None) -> None:
    """Refuse several nodes that share nothing.

    Args:
        nodes: those of a Ray, with those it may start.
        shared: storage that they share.
    """
    if len(nodes) > 1 and shared is None:
        problem = f"has {len(nodes)} nodes; what they share must be named: --storage s3://BUCKET/FOLDER"
        raise ExperimentError(problem, key="ray-address")


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


def coming(path: Path, workers: int) -> list[dict[str, float]]:
    """Resources of the nodes that Ray may yet start.

    Args:
        path: the file it starts them by, as it lies on a head.
        workers: nodes beside the head that are there.

    Raises:
        ExperimentError: the file cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        types, most = found["available_node_types"], int(found.get("max_workers", 0))
        head = found.get("head_node_type")
        rest = {name: int(t.get("max_workers", most)) for name, t in types.items() if name != head}
        rows = [dict(types[name].get("resources") or {}) for name, count in rest.items() for _ in range(count)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"names no cluster file: {reason(error)}"
        raise ExperimentError(problem, key="AKD_CLUSTER_FILE", value=str(path)) from None
    # Which types are there already is not told apart: as many fewer may come.
    return [row for row in rows if row][: max(0, most - workers)]
