# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback that can misbehave."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DRIP_S = 0.05


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
        drips_after: bytes of an answer after which single bytes follow, with pauses; headers count for none.
        drips_headers: whether the headers come in single bytes, with pauses.
        content_range: in place of the right one.
        etag: of every file; one that differs from ``If-Range`` makes the server send the file whole.
        heeds_if_range: whether it does.
        changes: by path, what a file contains from the second request on.
        announced: bytes that an answer announces, more or fewer than it has.
        redirects: by path, where an answer sends the client.
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
        self.drips_after: int | None = None
        self.drips_headers = False
        self.content_range: str | None = None
        self.etag = ""
        self.heeds_if_range = True
        self.changes: dict[str, tuple[bytes, str]] = {}
        self.announced: int | None = None
        self.redirects: dict[str, str] = {}
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
        if self.path in server.redirects:
            return self._answer(302, Location=server.redirects[self.path])
        if server.drips_headers:
            self._drip(b"HTTP/1.1 200 OK\r\nX-Long: ")
            return None
        file = server.folder / self.path.lstrip("/")
        if self.path in server.status or not file.is_file():
            return self._answer(server.status.get(self.path, 404))
        data, start, etag = file.read_bytes(), 0, server.etag
        if self.path in server.changes and len(server.ranges(self.path)) > 1:
            data, etag = server.changes[self.path]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_changed = server.heeds_if_range and self.headers["If-Range"] not in (None, etag)
        if asked and server.knows_ranges and not is_changed:
            start = int(asked[1])
            if start >= len(data):
                return self._answer(416)
        self.send_response(206 if start else 200)
        if start:
            part = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send_header("Content-Range", part if server.content_range is None else server.content_range)
        if etag:
            self.send_header("ETag", etag)
        data = data[start:]
        self.send_header("Content-Length", str(len(data) if server.announced is None else server.announced))
        self.end_headers()
        self._send(data)
        return None

    def _send(self, data: bytes) -> None:
        server = self.server
        if server.drips_after is not None:
            self.wfile.write(data[: server.drips_after])
            self._drip(data[server.drips_after :])
        elif server.breaks and self.path.endswith(".zip"):
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

    def _drip(self, data: bytes) -> None:
        for i in range(len(data)):
            self.wfile.write(data[i : i + 1])
            if self.server.released.wait(DRIP_S):
                return

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
