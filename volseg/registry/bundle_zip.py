# SPDX-License-Identifier: Apache-2.0
"""Unpack the zip of a bundle without trusting its content."""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volseg.errors import UserError
from volseg.registry.manifest import MANIFEST, Manifest

__all__ = ["unpack"]

# a manifest of ten thousand files takes 2 MB
MANIFEST_LIMIT_BYTES = 16 * 2**20
UNIX = 3
ENCRYPTED = 1


def unpack(path: Path, folder: Path) -> Manifest:
    """Unpack a bundle into an empty folder, without the top folder of the zip.

    Args:
        path: a zip that ``python -m tools pack`` wrote.
        folder: becomes the bundle's folder.

    Returns:
        the manifest, with which every file was compared.

    Raises:
        UserError: the file is not the zip of a bundle, or not a safe one: it has paths that leave the folder, links,
            compressed or encrypted entries, or files that differ from the manifest.
    """
    with _opened(path) as archive:
        manifest, text = _checked_manifest(archive, path)
        for name, expected in manifest.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("xb") as output:
                for block in _blocks(archive, f"{manifest.release.name}/{name}", path):
                    digest.update(block)
                    output.write(block)
            if digest.hexdigest() != expected["sha256"]:
                raise UserError(f"{path}: {name} differs from the manifest; get the zip again")
        with (folder / MANIFEST).open("xb") as output:
            output.write(text)
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    # a malicious directory of the zip raises the last two
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _unreadable(path, error) from error
    with archive:
        yield archive


def _blocks(archive: zipfile.ZipFile, name: str, path: Path) -> Iterator[bytes]:
    """The content of an entry, never more than its size."""
    try:
        with archive.open(name) as source:
            while block := source.read(2**20):
                yield block
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise _unreadable(path, error) from error


def _checked_manifest(archive: zipfile.ZipFile, path: Path) -> tuple[Manifest, bytes]:
    """The manifest and its text, if every entry of the zip is safe to unpack and listed in it."""
    entries = archive.infolist()
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == UNIX else 0
        if kind not in (0, stat.S_IFREG):
            raise _harmful(path, f"{entry.filename!r} is a link, a device or a folder")
        # bundles are not compressed: what compresses well, such as zeros, could fill a disk
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
            raise _harmful(path, f"{entry.filename!r} is compressed or encrypted")
    # entries could share their bytes
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _harmful(path, "its entries are larger than the zip")
    manifests = [e for e in entries if e.filename.endswith(f"/{MANIFEST}") and e.filename.count("/") == 1]
    if len(manifests) != 1 or manifests[0].file_size > MANIFEST_LIMIT_BYTES:
        raise UserError(
            f"{path}: not a bundle: has no readable NAME/{MANIFEST}; make a bundle with `python -m tools pack`"
        )
    text = b"".join(_blocks(archive, manifests[0].filename, path))
    manifest = Manifest.parse(text, f"{path}, {manifests[0].filename}")
    top = manifest.release.name
    expected = {f"{top}/{name}": file["size"] for name, file in manifest.files.items()}
    expected[f"{top}/{MANIFEST}"] = len(text)
    sizes = [(entry.filename, entry.file_size) for entry in entries]
    if sorted(sizes) != sorted(expected.items()):
        strange = sorted(set(sizes) ^ set(expected.items())) or sorted(sizes)
        raise _harmful(path, f"{strange[0][0]!r} differs between manifest and zip")
    return manifest, text


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return UserError(f"{path}: cannot be read as a zip: {reason}; download or pack it again")


def _harmful(path: Path, what: str) -> UserError:
    return UserError(f"{path}: will not be unpacked: {what}; get the zip from a source that you trust")
