# SPDX-License-Identifier: Apache-2.0
"""The manifest of a packed bundle: SHA-256 and size of every released file, to compare installed files with."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from volseg.errors import UserError
from volseg.registry.release import Release

__all__ = ["MANIFEST", "Change", "Manifest", "released_files", "safe_path", "sha256"]

MANIFEST = "manifest.json"
# written by running a bundle, and by Python beside every module
LOCAL_FOLDERS = ("data", "output")
CACHE = "__pycache__"
# added by the Hugging Face Hub and its client
HUB_FILES = ("README.md", ".gitattributes")
HUB_FOLDERS = (".cache",)
# a file name on every system: no drive, no "..", no dot at the end, no Windows device
PATH_PART = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9_.+-]*[A-Za-z0-9_+-]")
SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def released_files(folder: Path, caches: bool = False) -> Iterator[Path]:
    """Files and links below a bundle's folder, without its manifest and what running or sharing it adds.

    A link to a folder counts as a file: a release has none.

    Args:
        folder: the bundle's.
        caches: whether Python's caches are among them.
    """
    for path in sorted(folder.iterdir()):
        is_known = path.name in ((*LOCAL_FOLDERS, *HUB_FOLDERS) if path.is_dir() else (*HUB_FILES, MANIFEST))
        if not is_known:
            yield from _files(path, caches)


def _files(path: Path, caches: bool) -> Iterator[Path]:
    if path.name == CACHE and not caches:
        return
    if not path.is_dir() or path.is_symlink():
        yield path
        return
    for child in sorted(path.iterdir()):
        yield from _files(child, caches)


def safe_path(path: str) -> str:
    """The path, if it stays below its folder and names one file on every system.

    Raises:
        ValueError: it does not.
    """
    parts = path.split("/")
    is_git = any(part.lower().startswith(".git") for part in parts)  # git runs commands that its files name
    if parts[0] in (*LOCAL_FOLDERS, *HUB_FILES, *HUB_FOLDERS, MANIFEST) or CACHE in parts or is_git:
        raise ValueError(f"the path {path!r} is reserved")
    if not all(PATH_PART.fullmatch(part) for part in parts):
        raise ValueError(f"the path {path!r} is not portable")
    return path


@dataclass(frozen=True)
class Change:
    """A difference between an installed bundle and its manifest.

    Args:
        path: of the file, relative to the bundle.
        kind: ``changed``, ``missing`` or ``added``.
    """

    path: str
    kind: str


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json`` in a packed bundle.

    Args:
        release: name and version.
        revision: commit of the source, with ``-dirty`` appended if there were uncommitted changes.
        licenses: SPDX identifiers of ``code`` and, if weights are included, of ``weights``.
        required_packages: versions of published packages by name.
        files: ``{"sha256": ..., "size": ...}`` by path relative to the bundle, with ``/``; size in bytes.
    """

    release: Release
    revision: str
    licenses: dict[str, str]
    required_packages: dict[str, str]
    files: dict[str, dict[str, Any]]

    @classmethod
    def parse(cls, text: str | bytes, source: object) -> Manifest:
        """Read the text of a manifest.

        Args:
            text: JSON.
            source: where the text comes from, for errors.

        Raises:
            UserError: the text is not a manifest.
        """
        try:
            content = json.loads(text)
            manifest = cls(
                Release(content["name"], content["version"]),
                str(content["revision"]),
                {str(k): str(v) for k, v in content["licenses"].items()},
                {str(k): str(v) for k, v in content["required_packages"].items()},
                {safe_path(path): _facts(path, file) for path, file in content["files"].items()},
            )
            _check_distinct(manifest.files)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{source}: not a bundle manifest: {reason}; pack the bundle again") from error
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of an installed bundle.

        Raises:
            UserError: it is missing or invalid.
        """
        path = folder / MANIFEST
        try:
            return cls.parse(path.read_bytes(), path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}; give the folder of a downloaded bundle"
            ) from error

    def as_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        return {
            "name": self.release.name,
            "version": self.release.version,
            "revision": self.revision,
            "licenses": self.licenses,
            "required_packages": self.required_packages,
            "files": self.files,
        }

    def changes(self, folder: Path, caches: bool = False, elsewhere: Mapping[str, str] | None = None) -> list[Change]:
        """How a folder differs from this manifest, in the order of paths.

        Ignored are the folders ``data`` and ``output``, which running a bundle writes, and what the Hugging Face Hub
        adds.

        Args:
            folder: the bundle's.
            caches: whether Python's caches count, which can hold other code than the modules beside them.
            elsewhere: SHA-256 by path of further files, which the bundle has but its zip does not.
        """
        expected = {path: {"sha256": digest} for path, digest in (elsewhere or {}).items()} | self.files
        found = {path.relative_to(folder).as_posix(): path for path in released_files(folder, caches)}
        changes = [Change(path, "missing") for path in expected.keys() - found.keys()]
        for path, file in found.items():
            if path not in expected:
                changes.append(Change(path, "added"))
            elif not _is_same(file, expected[path]):
                changes.append(Change(path, "changed"))
        return sorted(changes, key=lambda change: change.path)


def _is_same(path: Path, expected: dict[str, Any]) -> bool:
    facts = path.lstat()  # a release has no links, and no pipes, which would block
    is_as_large = facts.st_size == expected.get("size", facts.st_size)
    return stat.S_ISREG(facts.st_mode) and is_as_large and sha256(path) == expected["sha256"]


def _facts(path: str, file: dict[str, Any]) -> dict[str, Any]:
    digest, size = file["sha256"], file["size"]
    if not SHA256.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError(f"{path} has sha256 {digest!r:.80} and size {size!r:.80}")
    return {"sha256": digest, "size": size}


def _check_distinct(paths: Collection[str]) -> None:
    """Refuse paths that are one file on systems that ignore case, or both a file and a folder."""
    seen = {path.lower() for path in paths}
    folders = {parent for path in seen for parent in accumulate(path.split("/")[:-1], "{}/{}".format)}
    if len(seen) < len(paths) or seen & folders:
        raise ValueError("paths that differ in case only, or are a file and a folder at once")
