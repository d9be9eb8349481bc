"""How often a run was begun without getting anywhere: what tells a run that kills its process from nodes that go away.

A process that dies takes no reason with it. On spot machines that is nothing of the run's, and it must be tried again
as often as it takes; a run that is too large for its machine must not be tried for ever.
"""

from __future__ import annotations

import json
from pathlib import Path

from akd import checkpoint
from akd import folder as run_folder
from akd.errors import RunError

#: Beginnings at the same epoch, within one session of a study, after which a run is given up.
MOST = 4
_FILE = "starts.json"


def begin(folder: Path, session: str) -> None:
    """Count a beginning of the run in ``folder``.

    Args:
        session: of the study: an interruption by its user counts for nothing.

    Raises:
        RunError: it has been begun too often where it stands.
    """
    here = [len(run_folder.head_history(folder)), len(run_folder.history(folder))]
    try:
        before = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        before = {}
    same = before.get("session") == session and before.get("epochs") == here
    times = int(before.get("times", 0)) + 1 if same else 1
    checkpoint.write_json(folder / _FILE, {"session": session, "epochs": here, "times": times})
    if times > MOST:
        what = f"head epoch {here[0] + 1}" if here[0] and not here[1] else f"epoch {here[1] + 1}"
        raise RunError(f"its process died {MOST} times in {what}; the machine may be short of memory")
