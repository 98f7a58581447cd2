# SPDX-License-Identifier: Apache-2.0
"""Read a registry from a folder, a web server or any storage that fsspec supports."""

from __future__ import annotations

import http.client
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from urllib.parse import urljoin, urlsplit

import requests
from fsspec.implementations.local import LocalFileSystem

from volseg.errors import UserError
from volseg.storage.file_systems import open_storage

__all__ = ["Location", "locate"]

# the longest wait for a block, headers included, so 546 bytes/s at least: a modem is faster, and a server that drips is
# cut off
TIMEOUT_S = 30
ATTEMPTS = 4
# before the second attempt, doubled before each further one
FIRST_WAIT_S = 0.5
# at most so much is lost when a connection breaks
BLOCK_BYTES = 2**14
# blocks received ahead of the disk
BLOCKS_AHEAD = 64
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
# an index of ten thousand versions takes 10 MB
READ_LIMIT_BYTES = 64 * 2**20


class Location(ABC):
    """Files of one folder, readable from any offset.

    Args:
        name: as given by the user.
    """

    def __init__(self, name: str) -> None:
        self.name = name.rstrip("/") or name

    def path(self, file: str) -> str:
        """The path or URL of a file, for messages."""
        return f"{self.name}/{file}"

    def read(self, file: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the location cannot be reached or denies access, or the file is too large.
        """
        content = bytearray()
        for offset, block in self.blocks(file):
            content[offset:] = block
            if len(content) > READ_LIMIT_BYTES:
                raise UserError(f"{self.path(file)}: is larger than {READ_LIMIT_BYTES} bytes; check the registry")
        return bytes(content)

    @abstractmethod
    def blocks(self, file: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """The content of a file from byte ``start`` on, in pieces.

        Yields:
            the offset of a piece in bytes, and the piece. Each piece follows the previous one, or starts at 0 if the
            location cannot resume: then discard what was received before.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the location cannot be reached or denies access.
        """


def locate(registry: str | Path) -> Location:
    """The location for a folder or URL.

    Args:
        registry: a path, a URL with ``file://``, ``http://`` or ``https://``, or the URL of a storage whose fsspec
            package is installed, such as ``s3://bucket/folder`` with s3fs.

    Raises:
        UserError: the folder does not exist, or the URL cannot be opened.
    """
    name = str(registry)
    if name.startswith(("http://", "https://")):
        return WebLocation(name)
    return StoredLocation(name)


class StoredLocation(Location):
    """A folder, local or on a storage that fsspec supports."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.file_system, self.folder = open_storage(name)
        if isinstance(self.file_system, LocalFileSystem):
            self.name = self.folder
            if not Path(self.folder).is_dir():
                raise UserError(f"{self.folder}: no such folder; give a registry's folder or URL")

    def blocks(self, file: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
        try:
            with self.file_system.open(f"{self.folder}/{file}", "rb") as opened:
                opened.seek(start)
                while block := opened.read(BLOCK_BYTES):
                    yield start, block
                    start += len(block)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"{self.path(file)}: cannot be read: {error.strerror or error}; check the registry and the permissions"
            ) from error


class WebLocation(Location):
    """A folder on a web server; temporary failures are retried from where the transfer broke off."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.session = _Session()
        self.etags: dict[str, str] = {}

    def blocks(self, file: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
        url = self.path(file)
        position = furthest = start
        failures = 0
        while True:
            try:
                with closing(_in_time(self._response(url, position))) as blocks:
                    for offset, block in blocks:
                        yield offset, block
                        position = offset + len(block)
                        if position > furthest:
                            furthest, failures = position, 0
                return
            except requests.RequestException as error:
                failures += 1
                # a malformed URL is a ValueError too
                if failures == ATTEMPTS or isinstance(error, ValueError):
                    raise UserError(
                        f"{url}: cannot be reached: {_reason(error)}; check the URL and the network"
                    ) from error
                time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))

    def _response(self, url: str, start: int) -> Generator[tuple[int, bytes]]:
        # bytes compressed by the server would not continue those of an interrupted download
        headers = {"Accept-Encoding": "identity"}
        known = self.etags.get(url, "") if start else ""
        if start:
            headers["Range"] = f"bytes={start}-"
            if known.startswith('"'):  # a strong one; a server that heeds it sends a changed file whole
                headers["If-Range"] = known
        with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            status = response.status_code
            reason = f"{status} {http.client.responses.get(status, '')}".rstrip()
            if status in (404, 410):
                raise FileNotFoundError(url)
            if status in RETRIED_STATUS:
                raise requests.HTTPError(reason)
            part = response.headers.get("Content-Range", "")
            etag = response.headers.get("ETag", "")
            is_other = status == 206 and (not re.match(rf"bytes {start}-", part) or known not in ("", etag))
            if is_other and not start:
                raise UserError(f"{url}: sends the part {part!r} of a file asked for whole; check the URL")
            if not is_other and not (status == 416 and start):
                if not response.ok:
                    raise UserError(f"{url}: was refused: {reason}; check the URL and your permissions")
                self.etags[url] = etag
                offset = start if status == 206 else 0
                for block in response.iter_content(BLOCK_BYTES):
                    yield offset, block
                    offset += len(block)
                return
        # the file has changed, or the server does not send the part asked for
        yield from self._response(url, 0)


class _Session(requests.Session):
    """A session that follows redirects to the same scheme, and from http to https."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None:
            schemes = urlsplit(resp.url).scheme, urlsplit(urljoin(resp.url, target)).scheme
            if schemes[0] != schemes[1] and schemes != ("http", "https"):
                raise UserError(
                    f"{resp.url}: redirects from {schemes[0]} to {schemes[1]}, {target!r:.200}, which is not followed; "
                    "check the URL, and report this to the registry's maintainers"
                )
        return target


def _in_time(blocks: Generator[tuple[int, bytes]]) -> Generator[tuple[int, bytes]]:
    """Blocks as they come, received by a thread, as requests limits only the time between two packets.

    Raises:
        requests.Timeout: the next block takes longer than ``TIMEOUT_S``.
    """
    received: Queue[tuple[int, bytes] | Exception | None] = Queue(BLOCKS_AHEAD)
    is_left = Event()

    def receive() -> None:
        try:
            with closing(blocks):
                for block in blocks:
                    received.put(block)
                    if is_left.is_set():
                        return
            received.put(None)
        except Exception as error:  # noqa: BLE001  raised below
            received.put(error)

    Thread(target=receive, daemon=True).start()  # a daemon: one that a server holds up holds up nobody else
    try:
        while True:
            try:
                block = received.get(timeout=TIMEOUT_S)
            except Empty:
                raise requests.Timeout(f"fewer than {BLOCK_BYTES} bytes came in {TIMEOUT_S} s") from None
            if block is None:
                return
            if isinstance(block, Exception):
                raise block
            yield block
    finally:
        is_left.set()
        while not received.empty():  # the thread may wait for room
            received.get()


def _reason(error: BaseException) -> str:
    """The root cause of an error from requests, in a few words."""
    while True:
        causes = [c for c in (getattr(error, "reason", None), *error.args) if isinstance(c, BaseException)]
        if not causes:
            break
        error = causes[0]
    return re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", str(error)) or type(error).__name__
