"""What akd warns of while a run is carried out: kept in the run's folder, for whoever started it to show.

The process that trains has no terminal of its own (Ray swallows what its workers print).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from akd.errors import AkdWarning, one_line

_FILE = "warnings.txt"


@contextlib.contextmanager
def kept(folder: Path, keep: bool = True) -> Iterator[None]:
    """Within the block akd's own warnings go into ``folder``, one line each.

    Args:
        keep: false drops them: of several workers one tells.
    """
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, AkdWarning):
                others(message, category, *place, **more)
            elif keep:
                with contextlib.suppress(OSError), open(folder / _FILE, "a", encoding="utf-8") as file:
                    file.write(one_line(str(message)) + "\n")

        warnings.simplefilter("always", AkdWarning)
        warnings.showwarning = show
        yield


def of(folder: Path) -> list[str]:
    """What was warned of so far."""
    try:
        return (folder / _FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


class Reader:
    """Gives each warning once, and none that was there before.

    Args:
        folders: that were there before.
    """

    def __init__(self, folders: Iterator[Path]):
        self._seen = {folder: len(of(folder)) for folder in folders}

    def new(self, folder: Path) -> list[str]:
        """What was warned of since the last call."""
        lines, seen = of(folder), self._seen.get(folder, 0)
        self._seen[folder] = len(lines)
        return lines[seen:]
