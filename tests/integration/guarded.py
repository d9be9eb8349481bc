"""A tracking server behind a password, which can be killed and started again."""

from __future__ import annotations

import base64
import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

USER, PASSWORD = "keeper", "s3sam/e+0pen@it"
#: Every way in which the password could be written down.
SPELLINGS = (
    PASSWORD,
    quote(PASSWORD, safe=""),
    quote(PASSWORD),
    PASSWORD.partition("/")[0],
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode().rstrip("="),
)


class Door:
    """Answers those who know the password, with the words of the server behind; 502 while that is away."""

    def __init__(self, port: int):
        wanted = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        self.let_in = 0

        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                if self.headers.get("Authorization") != wanted:
                    self.reply(401, b"who are you?", {"WWW-Authenticate": "Basic"})
                    return
                door.let_in += 1
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
                behind = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    behind.request(self.command, self.path, body, headers | {"Host": f"127.0.0.1:{port}"})
                    found = behind.getresponse()
                    kept = {k: v for k, v in found.getheaders() if k.lower() in ("content-type",)}
                    self.reply(found.status, found.read(), kept)
                except OSError:
                    self.reply(502, b"nobody is in", {})
                finally:
                    behind.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - as the library calls them

            def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(code)
                    for name, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.uri = f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def told(*places: Path) -> list[str]:
    """Files below some places that hold the password in any spelling."""
    found = []
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found += [f"{path}: {word}" for word in SPELLINGS if word.encode() in content]
    return found
