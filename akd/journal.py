"""Optuna's study as its journal tells it, read without touching the file: a search may be writing to it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from akd.errors import AkdError, reason

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def read_trials(journal: Path, name: str) -> list[FrozenTrial]:
    """The trials of study ``name``, by number; none where there is no journal yet.

    Raises:
        AkdError: the journal is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not journal.is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the whole lines: the last one may be half written, and opening a journal could lock it.
        copy = Path(folder) / "optuna.log"
        shutil.copyfile(journal, copy)
        text = copy.read_bytes()
        copy.write_bytes(text[: text.rfind(b"\n") + 1])
        try:
            storage = JournalStorage(JournalFileBackend(str(copy)))
            return optuna.load_study(study_name=name, storage=storage).get_trials()
        except Exception as error:  # whatever a damaged journal makes Optuna raise
            raise AkdError(f"{journal} cannot be read: {reason(error)}") from None
