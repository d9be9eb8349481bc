"""A disk of a few megabytes that really fills up: a tmpfs in a mount namespace, which nobody else sees."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import program

_ROOT = os.geteuid() == 0
_APART = ["unshare", *([] if _ROOT else ["--user", "--map-current-user", "--keep-caps"]), "--mount"]
_ENTER = ["nsenter", *([] if _ROOT else ["--user", "--preserve-credentials"]), "--mount", "--target"]


def missing() -> str | None:
    """Why there can be none here."""
    done = subprocess.run([*_APART, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    return f"mounting in a namespace is not permitted here: {done.stderr.strip()}" if done.returncode else None


class SmallDisk:
    """From its start to :meth:`close`.

    Attributes:
        place: where it is mounted, for programs started with :attr:`before`.
        outside: the same for everybody else.
        before: what to put before a command so that it sees the disk.
    """

    def __init__(self, place: Path, megabytes: int):
        place.mkdir()
        self.place = place
        script = 'mount -t tmpfs -o size="$1"m,mode=755 tmpfs "$0" && echo there && exec sleep 100000'
        self._keeper = subprocess.Popen(
            [*_APART, "sh", "-c", script, str(place), str(megabytes)], stdout=subprocess.PIPE, text=True
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "there\n"
        self.outside = Path(f"/proc/{self._keeper.pid}/root{place}")
        folder = str(place.parent)  # entering a namespace leaves the current folder
        self.before = [*_ENTER, str(self._keeper.pid), "sh", "-c", 'cd "$0" && exec "$@"', folder]
        self._ballast = self.outside / "ballast"

    def fill(self) -> None:
        """Take every byte that is left."""
        with open(self._ballast, "ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink()

    def close(self) -> None:
        """Unmount it."""
        self._keeper.send_signal(signal.SIGKILL)
        self._keeper.wait(30)


def started(disk: SmallDisk, arguments: list[str]) -> subprocess.Popen[str]:
    """``akd ARGUMENTS`` beside the disk."""
    return program.start(arguments, disk.place.parent, before=disk.before)
