"""The storage that nodes share, from each of them: whether it can be used there, and how its credentials get there."""

from __future__ import annotations

from typing import Any

from akd import __version__, storage
from akd.errors import ExperimentError

#: Seconds a node has to answer; its first process imports torch.
_PATIENCE_S = 120


def check_here(shown: str | None) -> None:
    """Have this machine try the storage.

    Raises:
        ExperimentError: it cannot use it.
    """
    if shown is not None and (why := storage.Storage(shown, patience_s=10).tried()) is not None:
        raise ExperimentError(f"cannot be used: {why}", key="storage", value=shown)


def check_reached(shown: str | None) -> None:
    """Have every node that can train try the storage: else its runs would fail, one after the other.

    Raises:
        ExperimentError: a node cannot use it, or has another akd.
    """
    if shown is None:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    hand_on(shown)
    task: Any = ray.remote(_reaches)
    asked = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = task.options(num_cpus=0, scheduling_strategy=there).remote(shown, __version__)
            asked.append((node["NodeManagerAddress"], answer))
    for address, answer in asked:
        try:
            why = ray.get(answer, timeout=_PATIENCE_S)
        except ray.exceptions.RayError as error:  # akd is not installed there, the node is gone or does not answer
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = lines[-1] if lines else type(error).__name__
        if why is not None:
            raise ExperimentError(f"cannot be used on node {address}: {why}", key="storage", value=shown)


def _reaches(shown: str, version: str) -> str | None:
    if __version__ != version:
        return f"it has akd {__version__}, not {version}"
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
