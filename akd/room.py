"""A full disk: what is said of it, and what is skipped without harm."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from akd.errors import is_full
from akd.summary import shown_path

#: Seconds for MLflow to take what is pending: its store mostly lies on the same disk.
PATIENCE_S = 5.0


def out_of_room(folder: Path, go_on: str, error: BaseException) -> str:
    """What the user is told.

    Args:
        folder: of the study or run.
        go_on: the command that does.
        error: names the file, if anybody does; it may be on another disk than ``folder``.
    """
    named = re.search(r"'(/[^']+)'", str(error))
    place = folder
    if named is not None and not Path(named[1]).is_relative_to(folder.parent):
        place = Path(named[1]).parent
    return (
        f"the disk is full: nothing more can be written in {shown_path(place)}. Nothing is lost; free some space, then "
        f"go on with: {go_on}"
    )


@contextlib.contextmanager
def skipped_if_full() -> Iterator[None]:
    """For what may be left unwritten on a full disk."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
