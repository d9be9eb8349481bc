"""A PostgreSQL of one's own in a folder, on a loopback port, for as long as a test lasts."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import program

#: Debian keeps the server's programs out of the path.
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def missing() -> str:
    """Why there can be none here; empty if there can."""
    if _program("initdb") is None:
        return "no PostgreSQL: apt-get install postgresql"
    if importlib.util.find_spec("psycopg2") is None:
        return "no driver: pip install 'akd[postgres]'"
    if os.getuid() == 0 and _other() is None:
        return "PostgreSQL refuses to run as root, and there is no other user"
    return ""


def _program(name: str) -> str | None:
    return next((str(p / name) for p in _PLACES if (p / name).is_file()), shutil.which(name))


def _other() -> pwd.struct_passwd | None:
    """Whom a server runs as that root starts."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


class Postgres:
    """Started and ended by :meth:`start` and :meth:`stop`; the password is part of ``uri``."""

    password = "ses/a@me"  # as it must be quoted in an address

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="akd-pg-", dir="/tmp"))
        self.port = program.free_port()
        self.user = _other() if os.getuid() == 0 else None
        self.uri = f"postgresql://akd:ses%2Fa%40me@127.0.0.1:{self.port}/postgres"
        (self.folder / "password").write_text(self.password)
        if self.user is not None:
            for path in (self.folder, self.folder / "password"):
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        line = ["-D", self.folder / "data", "-U", "akd", "-A", "scram-sha-256", f"--pwfile={self.folder}/password"]
        self._run("initdb", *line, "-E", "UTF8", "--locale=C")

    def _run(self, name: str, *words: object) -> None:
        found, who = _program(name), self.user
        assert found is not None
        ids = {} if who is None else {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        line = [found, *map(str, words)]
        done = subprocess.run(
            line, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120, **ids
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def start(self) -> None:
        """Until it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options, "-w", "start")

    def stop(self) -> None:
        """At once, as a machine that goes away."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
