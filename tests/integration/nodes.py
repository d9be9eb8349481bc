"""A Ray of several nodes on this machine, in a process of its own that adds and removes them when it is told to.

Run as a program: prints the address, then reads ``remove K`` (SIGKILL to all of node K), ``term K`` (SIGTERM, as a spot
machine gets it) and ``add``, and answers each with a line. Run with ``join ADDRESS`` it is one more node.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import program


class Nodes:
    """The Ray, from its start to :meth:`close`: a head, and nodes 1, 2, ... beside it.

    Args:
        folder: for its log.
        nodes: beside the head.
        cpus: of the head, and of each node.

    Attributes:
        address: of the Ray.
    """

    def __init__(self, folder: Path, nodes: int, cpus: tuple[int, int] = (0, 1)):
        self._log = open(folder / "nodes.txt", "w", encoding="utf-8")  # noqa: SIM115 - the child keeps it
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(nodes), str(cpus[0]), str(cpus[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"},
        )
        self.address = self._said("address")

    def _said(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise AssertionError(f"no {word!r} was said")

    def tell(self, *words: Any) -> None:
        """Have something done, and wait for it."""
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        self._said("done")

    def close(self) -> None:
        """End all of it."""
        for pid in program.session_members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        self._log.close()


def _descendants(pids: list[int]) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, rest = list(pids), list(pids)
    while rest:
        found += (children := parents.get(rest.pop(), []))
        rest += children
    return found


def _serve(count: int, head: int, each: int) -> None:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray.cluster_utils import Cluster

    # What a lost node's resources are worth: without this Ray takes thirty seconds to see that it is gone.
    settings = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    with socket.socket() as one:  # a port that no other Ray of this machine has
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    facts = {"num_cpus": head, "include_dashboard": True, "dashboard_port": port, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=facts)
    nodes = [cluster.add_node(num_cpus=each) for _ in range(count)]
    cluster.wait_for_nodes()
    print("address", cluster.address, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "add":
            nodes.append(cluster.add_node(num_cpus=each))
        else:
            node = nodes[int(rest[0]) - 1]
            raylets = [info.process.pid for info in node.all_processes["raylet"]]
            for pid in _descendants(raylets):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if word == "remove" else signal.SIGTERM)
            cluster.remove_node(node, allow_graceful=word == "term")
        print("done", flush=True)


def _join(address: str) -> None:
    """Be one more node of a Ray, until killed."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # As a Cluster adds one, which 'ray start' does not on loopback alone.
    facts = RayParams(
        num_cpus=1,
        num_gpus=0,
        object_store_memory=150 << 20,
        min_worker_port=0,
        max_worker_port=0,
        gcs_address=address,
        redis_address=address,
        node_manager_port=0,
        include_log_monitor=False,
        dashboard_agent_listen_port=None,
    )
    node = Node(facts, head=False, shutdown_at_exit=False, spawn_reaper=False)
    print("joined", node.unique_id, flush=True)
    signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "join":
        _join(sys.argv[2])
    else:
        _serve(*(int(word) for word in sys.argv[1:4]))
