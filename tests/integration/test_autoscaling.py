"""A search on a Ray that starts its nodes when trials ask for them. Takes minutes: ``make test-long``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import program
import pytest
from bucket import CREDENTIALS, Bucket
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from studies import agree

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

# A Ray of the tests is on loopback, without a token.
ENVIRONMENT = CREDENTIALS | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Autoscaling:
    """Ray's own autoscaler with the provider Ray tests it with: a head without CPUs, up to three nodes of one CPU.

    Attributes:
        address: of the Ray.
        file: what it starts nodes by.
        log: of the autoscaler.
    """

    def __init__(self, folder: Path):
        port, self.file = free_port(), folder / "cluster.json"
        self.address = f"127.0.0.1:{port}"
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        # What 'ray up' fills in.
        synced = {"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
        synced |= {"rsync_exclude": [], "rsync_filter": [], "auth": {"ssh_user": "me"}}
        provider = {"type": "fake_multinode", "gcs_address": self.address, "head_node_id": FAKE_HEAD_NODE_ID}
        provider |= {"disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True}
        head, small = {"CPU": 0}, {"CPU": 1}
        cluster = {
            "cluster_name": "akd-scales",
            "max_workers": 3,
            "idle_timeout_minutes": 0.5,
            "upscaling_speed": 1.0,
            "provider": provider,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": head, "node_config": {}, "max_workers": 0},
                "small": {"resources": small, "node_config": {}, "min_workers": 0, "max_workers": 3},
            },
            **{f"{name}_commands": [] for name in commands},
            **synced,
        }
        self.file.write_text(json.dumps(cluster), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | ENVIRONMENT
        environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
        start += ["--node-ip-address=127.0.0.1", "--num-cpus=0", f"--autoscaling-config={self.file}"]
        start += [f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        with open(folder / "ray.txt", "wb") as out:
            self.process = subprocess.Popen(
                start,
                env=environment | {"AUTOSCALER_UPDATE_INTERVAL_S": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            program.wait_for(lambda: b"will now block forever" in (folder / "ray.txt").read_bytes(), 120)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all of it."""
        for pid in program.session_members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def scaling(tmp_path: Path) -> Iterator[Autoscaling]:
    with contextlib.closing(Autoscaling(tmp_path)) as one:
        yield one


def test_nodes_come_as_trials_ask(tmp_path: Path, scaling: Autoscaling) -> None:
    with contextlib.closing(Bucket(tmp_path / "bucket.txt")) as bucket:
        environment = ENVIRONMENT | {"AKD_STORAGE": bucket.address, "AKD_CLUSTER_FILE": str(scaling.file)}
        arguments = ["search", "small.yaml", "--name", "s", "--champion-seeds", "1", "--ray-address", scaling.address]
        code, output = program.run(arguments, tmp_path, timeout=700, **environment)
        assert code == 0, output
    # There was no node when it began.
    assert "3 trials at a time, 1 CPU and 0 GPUs each" in output
    agree(tmp_path / "runs" / "s")
