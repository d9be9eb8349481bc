"""A machine to start a cluster on: an ssh server on loopback, in process and mount namespaces of its own.

``ray stop``, which ``ray up`` and ``ray down`` run on a node, ends every Ray it can see. In a namespace of its own it
sees none but the node's; the ssh server is the first process there, and what runs in it ends with it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import program
import yaml

CHECKOUT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_ROOT = os.geteuid() == 0
_APART = ["unshare", *([] if _ROOT else ["--user", "--map-current-user", "--keep-caps"]), "--mount", "--pid", "--fork"]
_APART += ["--kill-child", "--mount-proc"]

_SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
ForceCommand cd {home} && eval "$SSH_ORIGINAL_COMMAND"
"""


def missing() -> str | None:
    """Why no node can be started here."""
    for name, found in [("sshd", _SSHD), *((n, shutil.which(n)) for n in ("ssh", "ssh-keygen", "rsync", "unshare"))]:
        if not found:
            return f"there is no {name} (Debian: apt-get install openssh-server rsync)"
    if subprocess.run([*_APART, "true"], capture_output=True).returncode:
        return "process namespaces are not permitted here, and 'ray stop' would end every Ray on this machine"
    return None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Node:
    """The machine, from its start to :meth:`close`.

    Attributes:
        home: its user's home folder.
        environment: of a client that reaches it: a home, a temporary folder and an ssh of its own.
    """

    def __init__(self, folder: Path):
        self.folder, self.home, self.port = folder, folder / "home", free_port()
        for name in ("home", "client", "bin", "ray"):
            (folder / name).mkdir()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "sshd_config").write_text(_SETTINGS.format(port=self.port, folder=folder, home=self.home))
        # As ~/.ssh/config would: Ray has no setting for the port, and would copy a key it is given to the node.
        ssh = shutil.which("ssh")
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F none -p {self.port} -i {folder}/user_key "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "MLFLOW_", "AKD_"))}
        self.environment = kept | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder / "client"),
            "RAY_TMPDIR": str(folder / "client"),
            "TMPDIR": str(folder / "client"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray keeps its sockets: the node gets one of its own
        steps = [f"mount --bind {shlex.quote(str(self.folder / 'ray'))} /tmp/ray"]
        if _ROOT:  # the server's empty folder
            steps += ["mount -t tmpfs tmpfs /run", "mkdir -m 755 /run/sshd"]
        else:  # the server would give terminals to the group tty, which is not known in the namespace
            groups = shlex.quote(str(self.folder / "group"))
            steps += [f"sed /^tty:/d /etc/group > {groups}", f"mount --bind {groups} /etc/group"]
        steps += [f"exec {_SSHD} -D -e -f {shlex.quote(str(self.folder / 'sshd_config'))}"]
        with open(self.folder / "sshd.txt", "wb") as log:
            process = subprocess.Popen(
                [*_APART, "sh", "-c", " && ".join(steps)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            program.wait_for(lambda: process.poll() is not None or self._answers(), 20)
            assert process.poll() is None, (self.folder / "sshd.txt").read_text()
        except BaseException:
            process.kill()
            raise
        return process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def close(self) -> None:
        """End the machine and everything on it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def ray(self, *arguments: str, timeout: float = 240) -> tuple[int, str]:
        """Exit code and output of ``ray ARGUMENTS``, called at the top of the checkout."""
        found = subprocess.run(
            [RAY, *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        self.note(arguments, found.stdout, found.returncode)
        return found.returncode, found.stdout

    def note(self, arguments: Sequence[str], output: str, code: int) -> None:
        """Add a command to the transcript."""
        with open(self.folder / "transcript.txt", "a", encoding="utf-8") as file:
            file.write(f"$ ray {shlex.join(arguments)}\n{output}\n[exit code {code}]\n\n")

    def commands(self) -> list[str]:
        """The command line of everything that runs on it."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                found.append((Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " "))
        return found

    def processes(self) -> list[int]:
        """Everything that runs on it."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    parents.setdefault(parent, []).append(int(entry.name))
        found, rest = [], [self.process.pid]
        while rest:
            found += (children := parents.get(rest.pop(), []))
            rest += children
        return found

    def cluster_file(self) -> Path:
        """``clusters/onprem.yaml`` for this machine. Only what the package needs is not installed from afar again."""
        cluster: dict[str, Any] = yaml.safe_load((CHECKOUT / "clusters" / "onprem.yaml").read_text(encoding="utf-8"))
        cluster["cluster_name"] = f"akd-test-{self.port}"
        cluster["provider"]["head_ip"] = "127.0.0.1"
        cluster["auth"]["ssh_user"] = getpass.getuser()
        make, install, *rest = cluster["setup_commands"]
        libraries = sysconfig.get_paths()["purelib"]
        borrow = (
            f"cd ~/akd-env && echo {libraries} > lib/python3.{sys.version_info[1]}/site-packages/borrowed.pth"
            f' && for p in ray mlflow; do sed "1s|.*|#!$PWD/bin/python|" {sys.prefix}/bin/$p > bin/$p; done'
            " && chmod 755 bin/ray bin/mlflow"
        )
        cluster["setup_commands"] = [
            make.replace("python3 ", f"{sys.executable} "), borrow, f"{install} --no-deps", *rest,
        ]  # fmt: skip
        # Ports that no other Ray of this machine has.
        stop, start = cluster["head_start_ray_commands"]
        start = start.replace("6379", str(free_port()))
        start += f" --dashboard-port={free_port()} --ray-client-server-port={free_port()}"
        cluster["head_start_ray_commands"] = [stop, start]
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster, sort_keys=False), encoding="utf-8")
        return path
