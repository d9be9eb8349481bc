"""The way to MLflow: a client that says little and does not wait for long, and a store that is whole or not there."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(uri: str, output: Path, experiment_name: str) -> tuple[MlflowClient, str]:
    """A client of the store at ``uri`` and the id of an experiment there; both are made if they are missing.

    Args:
        output: folder of the default store; its artifacts go to ``output/artifacts``.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".mlflow.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _make_store(uri)
        client = client_of(uri)
        found = client.get_experiment_by_name(experiment_name)
        if found is None:
            # A server places artifacts itself; the default store needs an absolute folder.
            root = (output / "artifacts").absolute().as_uri() if uri.startswith("sqlite") else None
            try:
                # Without the kind, MLflow's pages open on the tools for language models.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                return client, client.create_experiment(experiment_name, root, tags)
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(experiment_name)
        if found is None:
            raise MlflowException(f"experiment {experiment_name!r} can be neither made nor found")
        return client, str(found.experiment_id)


def client_of(uri: str) -> MlflowClient:
    """A client of the store at ``uri`` that says little and does not wait for long."""
    # One failed request must come back soon: the tracking thread has its own patience.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Of a server MLflow prints the address of each run that ends: through the table of trials, and with its password.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    _quiet()
    return MlflowClient(uri)


#: What MLflow calls a fault that may be over by the next try; also what it says when nobody answers.
_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED", "DEADLINE_EXCEEDED")


def lasting(error: BaseException) -> bool:
    """True if a write that failed so would fail again however long one waits: refused, malformed, a file missing."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in _PASSING
    if isinstance(error, OSError):  # those of the library requests, too
        code = getattr(getattr(error, "response", None), "status_code", None)
        refused = code is not None and 400 <= code < 500 and code not in (408, 425, 429)
        return refused or isinstance(error, FileNotFoundError)
    return isinstance(error, (ValueError, LookupError, TypeError, AttributeError))


def _quiet() -> None:
    """MLflow's own words, once it is imported: what fails raises, and is told in one line by whoever asked."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A database's errors would come with their stack and every value of the statement.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _make_store(uri: str) -> None:
    """Make a sqlite store that is not there: beside its place, then renamed.

    MLflow builds its tables in many steps, and a store cut off in between can never be opened again.
    """
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    _quiet()
    side = path.with_name(f".{path.name}.{os.getpid()}")
    side.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{side}").search_experiments(max_results=1)
    os.replace(side, path)
