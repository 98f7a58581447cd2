# SPDX-License-Identifier: Apache-2.0
"""Write the files of a registry, its page for people among them: created once, replaced whole, never half-written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import jinja2
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from volseg.errors import UserError
from volseg.registry.index import INDEX, INDEX_SIGNATURE, Entry, as_index
from volseg.storage.file_systems import open_storage
from volseg.storage.files import atomic_path, remove_leftovers, writing

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("registry_page.html")
LOCK = ".publish.lock"


def registry_page(entries: Sequence[Entry]) -> str:
    """A page with a card for each bundle: picture, task, versions, metrics, licence, checksum, download commands.

    Args:
        entries: by name and from the oldest version to the newest.

    Returns:
        HTML that needs nothing but the registry's own pictures.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    bundles = [list(group)[::-1] for _, group in groupby(entries, key=lambda entry: entry.release.name)]
    return template.render(bundles=bundles)


class RegistryStore:
    """A folder, local or on a storage that fsspec can write to.

    Args:
        registry: path or URL; created if absent.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, registry: str) -> None:
        self.name = registry
        if registry.startswith(("http://", "https://")):
            raise UserError(
                f"{registry}: web servers cannot be written to; "
                "publish to the folder that it serves, or to a storage such as s3://bucket/path"
            )
        self.file_system, self.folder = open_storage(registry)
        self.is_local = isinstance(self.file_system, LocalFileSystem)
        if self.is_local:
            self.name = self.folder
        with writing(self.name):
            self.file_system.makedirs(self.folder, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other publishers where the storage can; an ``OSError`` becomes one line.

        On a local or mounted folder publishers wait for a lock, which ends with the process that holds it. Other
        storages have no locks: there :meth:`create_entry` and :meth:`publish_index` keep releases whole.
        """
        with writing(self.name):
            if self.is_local:
                with FileLock(Path(self.folder) / LOCK):
                    remove_leftovers(self.folder)
                    yield
            else:
                yield

    def entries(self) -> list[Entry]:
        """The entries of all released versions, by name and from the oldest to the newest."""
        try:
            paths = self.file_system.ls(self.folder, detail=False, refresh=True)
        except FileNotFoundError:  # object stores have no empty folders
            paths = []
        entries = []
        for path in paths:
            name = path.rpartition("/")[2]
            if name.startswith(".") or name == INDEX or not name.endswith(".json"):
                continue
            try:
                entries.append(self._read_entry(name))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.name}/{name}: not the entry of a release: {error}; remove it") from error
        return sorted(entries, key=lambda entry: (entry.release.name, entry.release.order))

    def create_zip(self, name: str, path: Path, sha256: str) -> None:
        """Copy a zip unless it exists, which a killed publisher may have left.

        Raises:
            UserError: another zip has that name.
        """
        if not self._create(name, path.read_bytes) and hashlib.sha256(self._read(name)).hexdigest() != sha256:
            raise UserError(
                f"{self.name}/{name}: another zip has this name but was never released; "
                "remove it if nobody is publishing it right now, or raise the version"
            )

    def create_entry(self, entry: Entry) -> Entry:
        """Release a version by writing its entry, unless another publisher already did.

        Returns:
            the entry that exists now.
        """
        name = f"{entry.release.key}.json"
        return entry if self._create(name, lambda: _as_bytes(entry.as_json())) else self._read_entry(name)

    def is_signed(self) -> bool:
        """Whether the index has a signature."""
        return self.file_system.exists(f"{self.folder}/{INDEX_SIGNATURE}")

    def refuse_unsigned(self) -> None:
        """Raise ``UserError`` if the index is signed: its signature would not fit when it changes."""
        if self.is_signed():
            raise UserError(f"{self.name}: its index is signed; add --sign, or users with the key would reject it")

    def publish_index(
        self, page: Callable[[list[Entry]], str], sign: Callable[[bytes], bytes] | None = None
    ) -> list[Entry]:
        """Write the index, its signature and the page of all entries.

        The entries are read again afterwards: of two publishers without a lock, the one who writes last either has
        seen both entries, or sees the other's now and writes again.

        Args:
            page: makes the page.
            sign: makes the signature of the index.

        Raises:
            UserError: the index is signed and would change without ``sign``.
        """
        entries = self.entries()
        while True:
            index = _as_bytes(as_index(entries))
            if not (self.is_signed() and self._holds(INDEX, index)):
                if sign:  # before the index, so that an index that is there has its own
                    self.replace(INDEX_SIGNATURE, sign(index))
                else:
                    self.refuse_unsigned()
            self.replace(INDEX, index)
            self.replace(PAGE, page(entries).encode())
            now = self.entries()
            if now == entries:
                return entries
            entries = now

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: readers see the old or the new one."""
        if not self.is_local:
            self.file_system.pipe_file(f"{self.folder}/{name}", data)
            return
        with atomic_path(Path(self.folder) / name) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _create(self, name: str, data: Callable[[], bytes]) -> bool:
        """Write a file whole unless it exists; return whether it was written."""
        path = f"{self.folder}/{name}"
        if self.file_system.exists(path):
            return False
        if self.is_local:
            self.replace(name, data())  # this publisher holds the lock
            return True
        try:
            self.file_system.pipe_file(path, data(), mode="create")
        except FileExistsError:
            return False
        return True

    def _holds(self, name: str, data: bytes) -> bool:
        return self.file_system.exists(f"{self.folder}/{name}") and self._read(name) == data

    def _read(self, name: str) -> bytes:
        return self.file_system.cat_file(f"{self.folder}/{name}")

    def _read_entry(self, name: str) -> Entry:
        return Entry.parse(name.removesuffix(".json"), json.loads(self._read(name)))


def _as_bytes(content: object) -> bytes:
    return (json.dumps(content, indent=4) + "\n").encode()
