"""Addresses a user gives, tried before anything is started or written: of MLflow, of a Ray.

Both libraries would wait for minutes; a word of no more than a few seconds says whether somebody is there.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from akd.errors import ExperimentError, near, reason
from akd.logged import scrubbed

#: Seconds an address has to answer.
PATIENCE_S = 3.0
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SCHEMES = ("sqlite", "http", "https", *_DATABASES, "databricks")


def check_tracking(uri: str, output: Path, *, answers: bool = True) -> None:
    """Refuse an MLflow address that cannot be one, or where nobody answers. Sends no credentials.

    Args:
        uri: the address.
        output: folder of the default store, made if it is not there.
        answers: false checks the form alone.

    Raises:
        ExperimentError: unknown scheme, no such folder, no answer; the address is shown without its password.
    """
    scheme = _scheme(uri)
    if scheme == "sqlite":
        _sqlite(uri, output)
    elif scheme in ("http", "https"):
        _split(uri)
        if answers:
            _in_time(uri, lambda: _http(uri))
    elif scheme in _DATABASES:
        _database(uri, scheme, answers)


def _mistake(problem: str, uri: str) -> ExperimentError:
    return ExperimentError(scrubbed(problem, uri), key="tracking-uri", value=scrubbed(uri, refused=True))


def _scheme(uri: str) -> str:
    name = re.match(r"([A-Za-z][\w.-]*)(\+\w+)?:", uri)
    scheme = name[1].lower() if name else uri
    if scheme not in _SCHEMES:
        allowed = f"must be an address like http://HOST:5000 or sqlite:///FILE ({', '.join(_SCHEMES)})"
        allowed += near(scheme, _SCHEMES)
        raise _mistake(allowed, uri)
    return scheme


def _sqlite(uri: str, output: Path) -> None:
    if not uri.startswith("sqlite:///") or len(uri) == len("sqlite:///"):
        raise _mistake("must name a file, like sqlite:///mlflow.db, or sqlite:////tmp/mlflow.db for a whole path", uri)
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    try:
        if path.is_dir():
            raise _mistake("is a folder, not a file", uri)
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(15) not in (b"", b"SQLite format 3"):
                    raise _mistake("is no sqlite file", uri)
            if not os.access(path, os.W_OK):
                raise _mistake("cannot be written: Permission denied", uri)
        if path.parent == output.absolute():
            return
        if not path.parent.is_dir():
            raise _mistake(f"cannot be written: there is no folder {path.parent}", uri)
        with tempfile.TemporaryFile(dir=path.parent):  # without a name: leaves nothing
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise _mistake(f"cannot be written: {getattr(error, 'strerror', None) or error}", uri) from None


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        if parts.hostname and not re.search(r"\s", uri) and parts.port != 0:
            return parts
    except ValueError:  # an address that is half IPv6, a port that is no number
        pass
    raise _mistake("is no valid address, which looks like http://HOST:PORT", uri) from None


def _http(uri: str) -> str | None:
    """Why nobody answers at ``uri``; ``None`` if somebody does, whatever he says."""
    parts = _split(uri)
    host = parts.netloc.rpartition("@")[2]
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
    # Nothing secret is asked or sent here: a certificate is for MLflow's own client to judge.
    context = ssl._create_unverified_context()
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    try:
        opener.open(address, timeout=PATIENCE_S).close()
    except urllib.error.HTTPError as error:
        if error.code in (502, 503, 504):  # a gateway before a server that is away
            return f"{error.code} {error.reason}"
    except urllib.error.URLError as error:
        return _why(error.reason) if isinstance(error.reason, OSError) else str(error.reason)
    except Exception as error:  # no HTTP, no valid host name, a connection cut
        return _why(error)
    return None


def _database(uri: str, scheme: str, answers: bool) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise _mistake(f"is no database address: {scrubbed(reason(error))}", uri) from None
    except ImportError as error:
        raise _mistake(f"needs a library that is not installed: {reason(error)}", uri) from None
    if answers and url.host:
        host, port = url.host, url.port or _DATABASES[scheme]
        _in_time(uri, lambda: _connects(host, port))


def _connects(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return _why(error)
    return None


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {PATIENCE_S:g} s"
    return getattr(error, "strerror", None) or reason(error)


def _answer(ask: Callable[[], str | None]) -> str | None:
    """What ``ask`` gives, within a time that name servers and slow lines do not know of."""
    said: list[str | None] = []
    thread = threading.Thread(target=lambda: said.append(ask()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S + 0.5)
    return said[0] if said else f"nothing within {PATIENCE_S:g} s"


def _in_time(uri: str, ask: Callable[[], str | None]) -> None:
    why = _answer(ask)
    if why is not None:
        later = "start its server (a search may begin without it: --tracking-later)"
        raise _mistake(f"does not answer: {scrubbed(why)}; {later}", uri)


def _ray(address: str) -> str:
    """Why what listens at ``address`` is no Ray; empty if it is one, or cannot be asked."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # asks for certificates, which are Ray's own business
        return ""
    try:
        import grpc
    except ImportError:  # comes with Ray
        return ""
    with grpc.insecure_channel(address) as channel:
        try:  # the question every gRPC server of this kind answers, Ray's among them
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return "what listens there is no Ray"
    return ""


def check_ray(address: str) -> None:
    """Refuse the address of a Ray where nobody answers, or somebody else: Ray itself would try for half a minute.

    Raises:
        ExperimentError: nobody answers.
    """
    place = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^\s:/]+):(\d+)", address)
    if place is None:
        if address == "auto":  # Ray looks for one on this machine and knows at once
            return
        raise ExperimentError("must be HOST:PORT, ray://HOST:PORT, auto or local", key="ray-address", value=address)
    host, port = place[1].strip("[]"), int(place[2])
    why = _answer(lambda: _connects(host, port) or ("" if "ray://" in address else _ray(f"{host}:{port}")) or None)
    if why is not None:
        raise ExperimentError(f"no Ray answers there: {why}", key="ray-address", value=address)
