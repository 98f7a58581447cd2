# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback that can misbehave."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class MisbehavingServer(ThreadingHTTPServer):
    """Serves a folder, with ranges, and misbehaves as its attributes say.

    Attributes:
        requests: path and ``Range`` header of every request, in order.
        knows_ranges: whether ``Range`` is heeded.
        busy: how many more requests are answered by 503.
        breaks: how many more answers are broken off.
        break_after: bytes of an answer before it is broken off.
        status: by path, answers without content.
        stalls_after: bytes of a zip's answer after which nothing more is sent until :attr:`released`.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        self.busy = 0
        self.breaks = 0
        self.break_after = 0
        self.status: dict[str, int] = {}
        self.stalls_after: int | None = None
        self.stalled = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, path: str) -> list[str | None]:
        return [header for requested, header in self.requests if requested == path]

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: MisbehavingServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, self.headers["Range"]))
        if server.busy:
            server.busy -= 1
            return self._answer(503)
        file = server.folder / self.path.lstrip("/")
        if self.path in server.status or not file.is_file():
            return self._answer(server.status.get(self.path, 404))
        data, start = file.read_bytes(), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if asked and server.knows_ranges:
            start = int(asked[1])
            if start >= len(data):
                return self._answer(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        data = data[start:]
        if server.breaks and self.path.endswith(".zip"):
            server.breaks -= 1
            self.wfile.write(data[: server.break_after])
            self.close_connection = True
        elif server.stalls_after is not None and self.path.endswith(".zip"):
            self.wfile.write(data[: server.stalls_after])
            self.wfile.flush()
            server.stalled.set()
            server.released.wait(30)
        else:
            self.wfile.write(data)
        return None

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
