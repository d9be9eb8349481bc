"""Names of studies and runs, which are names of folders."""

from __future__ import annotations

import re

from akd.errors import ExperimentError

#: What else lies in the folder of all studies.
_RESERVED = ("artifacts", "cache", "mlflow.db", "single", "teachers")


def check_name(name: str, key: str) -> None:
    """Refuse what cannot be the name of a study: it is that of a folder.

    Raises:
        ExperimentError: reserved or malformed.
    """
    if name in _RESERVED:
        problem = f"is a reserved word: akd keeps something else there ({', '.join(_RESERVED)})"
        raise ExperimentError(problem, key="name", value=name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        problem = "must be at most 100 letters, digits, '.', '_' and '-', the first a letter or a digit"
        raise ExperimentError(problem, key=key, value=name)
