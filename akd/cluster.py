"""Ray, as akd uses it: where it runs, what it holds, and the settings that must be in place before it is imported."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path

from akd.config import SearchConfig
from akd.errors import ExperimentError

_SETTINGS = {
    # Ray binds its servers to every interface even on a loopback node; this keeps a local Ray to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A failed trial reports its reason and no accuracy.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "30",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Resources:
    """What one trial gets and how many fit.

    Attributes:
        cpus, gpus: of one trial.
        concurrent: trials at a time.
    """

    cpus: float
    gpus: float
    concurrent: int


def connect(address: str | None) -> bool:
    """Start a private Ray, or join the one at ``address`` (default ``$RAY_ADDRESS``).

    Returns:
        True if the Ray was started here and should be shut down afterwards.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    if local:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        protect_token()
    else:
        for name, value in _SETTINGS.items():
            if not name.startswith("RAY_ENABLE"):
                os.environ.setdefault(name, value)
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # By itself Ray counts CPUs this process may not use.
            cpus = int(machine()["CPU"]) if local else None
            ray.init(address=address, num_cpus=cpus, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise ExperimentError(
                f"no Ray answers there: {str(error).splitlines()[0]}", key="ray-address", value=address
            ) from None
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A stale address from the environment would lead every child process to another cluster.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return local


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


def share(search: SearchConfig, nodes: list[dict[str, float]]) -> Resources:
    """What a trial gets on these nodes, and how many trials fit at once.

    Args:
        nodes: the ``CPU`` and ``GPU`` of each node.

    Raises:
        ExperimentError: a trial fits on no node.
    """
    any_gpu = any(n.get("GPU", 0) for n in nodes)
    gpus = search.gpus_per_trial if search.gpus_per_trial is not None else float(any_gpu)
    # The least share of CPUs that goes with these GPUs on a node that has them: then every GPU is used.
    shares = [n.get("CPU", 0) * gpus // n["GPU"] for n in nodes if gpus and n.get("GPU", 0) >= gpus]
    cpus = search.cpus_per_trial or max(1.0, min(shares, default=1.0))

    def fits(node: dict[str, float]) -> int:
        counts = [int(node.get("CPU", 0) / cpus + 1e-9)]
        if gpus:
            counts.append(int(node.get("GPU", 0) / gpus + 1e-9))
        return min(counts)

    room = sum(fits(n) for n in nodes)
    if room < 1:
        most = {k: max((n.get(k, 0) for n in nodes), default=0) for k in ("CPU", "GPU")}
        key, value, have = ("cpus_per_trial", cpus, most["CPU"])
        if gpus and gpus > most["GPU"]:
            key, value, have = ("gpus_per_trial", gpus, most["GPU"])
        raise ExperimentError(
            f"fits on no node; the largest has {have:g} {key[:3].upper()}s", key=f"search.{key}", value=value
        )
    return Resources(cpus, gpus, min(room, search.concurrent or room))


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


def check(search: SearchConfig, address: str | None, *, fewer: bool = False) -> None:
    """Refuse what the machines cannot place, before anything is written: a private Ray need not be started for that.

    Args:
        search: what a trial asks for.
        address: as in :func:`connect`.
        fewer: take ``search.concurrent`` as the most, as a study does that goes on elsewhere.

    Raises:
        ExperimentError: a trial fits on no node, fewer trials fit at once than are asked for, no Ray answers.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    found = [machine()] if address == "local" else _nodes_at(address)
    resources = share(search, found)
    if search.concurrent and resources.concurrent < search.concurrent and not fewer:
        raise ExperimentError(
            f"at most {resources.concurrent} fit at a time: a trial takes {resources.cpus:g} CPUs and "
            f"{resources.gpus:g} GPUs, there are {sum(n.get('CPU', 0) for n in found):g} and "
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
        return nodes()
    finally:
        disconnect()
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def nodes() -> list[dict[str, float]]:
    """Resources of the living nodes of the Ray this process is connected to."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"]]
