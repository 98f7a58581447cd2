# SPDX-License-Identifier: Apache-2.0
"""Find, download and verify bundles of a registry."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from volseg.errors import UserError
from volseg.registry.archive import unpack
from volseg.registry.index import Entry, read_index
from volseg.registry.location import Location, locate
from volseg.registry.manifest import LOCAL_FOLDERS, MANIFEST, Change, Manifest, sha256
from volseg.registry.release import Release
from volseg.registry.signature import check_signature
from volseg.storage.files import complete_replacement, replacement, writing

__all__ = ["download", "find", "verify"]


def find(entries: list[Entry], bundle: str, registry: str) -> Entry:
    """The entry of ``NAME==VERSION``, or the newest of ``NAME``; 0.10.0 is newer than 0.9.0.

    Args:
        entries: of an index.
        bundle: ``NAME`` or ``NAME==VERSION``.
        registry: where the entries come from, for errors.

    Raises:
        UserError: no such bundle or version.
    """
    name, has_version, version = bundle.partition("==")
    versions = [entry for entry in entries if entry.release.name == name]
    if not versions:
        known = ", ".join(sorted({entry.release.name for entry in entries})) or "nothing"
        raise UserError(f"{registry}: no bundle of that name. Received: {name}. It holds {known}.")
    if not has_version:
        return max(versions, key=lambda entry: entry.release.order)
    wanted = Release(name, version)
    for entry in versions:
        if entry.release == wanted:
            return entry
    known = ", ".join(entry.release.version for entry in versions)
    raise UserError(f"{registry}: no such version of {name}. Received: {version}. It has {known}.")


def download(
    bundle: str,
    registry: str | Path,
    bundle_dir: str | Path,
    public_key: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Put a bundle into ``bundle_dir/NAME``, whole and checked, or leave what is there as it is.

    A download that broke off goes on where it stopped. The SHA-256 of the zip and of every file are checked before
    anything is put in place. Another version that is there is replaced at once; its folders ``data`` and ``output``,
    which running a bundle writes, move to the new one.

    Args:
        bundle: ``NAME`` or ``NAME==VERSION``; without a version the newest, unless a newer one is there already.
        registry: folder or URL.
        bundle_dir: folder of bundles; made if need be.
        public_key: of the one who signed the zip; a zip without a signature of this key is refused.
        force: replace whatever is there, also changes of yours and what is no downloaded bundle; they are lost.
        progress: show a progress bar, if someone sits at the terminal.

    Returns:
        the bundle's folder.

    Raises:
        UserError: as the messages say; ``bundle_dir/NAME`` is as it was.
    """
    location = locate(registry)
    entry = find(read_index(location), bundle, location.name)
    signature = _signature(location, entry) if public_key is not None else b""
    bundle_dir = Path(bundle_dir)
    target = bundle_dir / entry.release.name
    with writing(bundle_dir), _alone(bundle_dir, entry.release.name):
        complete_replacement(target, LOCAL_FOLDERS)
        if not force and os.path.lexists(target):
            _check_replaceable(target, entry, is_newest="==" not in bundle)
        # what a signature vouches for is the zip: with a key it is always looked at
        if force or public_key is not None or not _is_installed(target, entry):
            zip_path = bundle_dir / f".{entry.release.zip_name}.part"
            _fetch(location, entry, zip_path, progress)
            if public_key is not None:
                try:
                    check_signature(zip_path, signature, Path(public_key), entry.release.key)
                except UserError:
                    zip_path.unlink()
                    raise
            _install(zip_path, target, location, entry)
        # this version's zip, and what broken downloads of other versions left
        for left in bundle_dir.glob(f".{entry.release.name}_v*.zip.part"):
            left.unlink()
    return target


def verify(path: str | Path) -> tuple[Manifest, list[Change]]:
    """Compare every file of an installed bundle with its manifest.

    Args:
        path: the bundle's folder.

    Returns:
        the manifest and what differs: files that are missing, changed or added.

    Raises:
        UserError: no downloaded bundle, or one that cannot be read.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    try:
        return manifest, manifest.changes(folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be read. Received: {error.strerror or error}. Check your rights."
        ) from error


def _check_replaceable(target: Path, entry: Entry, is_newest: bool) -> None:
    """Refuse to replace what should not be lost.

    Args:
        target: it exists.
        entry: what would be put there.
        is_newest: the user asked for the newest version rather than for this one.

    Raises:
        UserError: something else than an unchanged bundle is there, or a newer version than the newest.
    """
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise UserError(
            f"{target}: will not be replaced. Received: what is no downloaded bundle. Move it away, or say --force "
            "to lose it."
        )
    manifest, changes = verify(target)
    if changes:
        count = f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
        first = ", ".join(f"{change.path} ({change.kind})" for change in changes[:3])
        raise UserError(
            f"{target}: will not be replaced. Received: {count}, {first}"
            f"{', ...' if len(changes) > 3 else ''}. Move it away, or say --force to lose them."
        )
    if is_newest and manifest.release.order > entry.release.order:
        raise UserError(
            f"{target}: is newer than the registry's newest. Received: {manifest.release.version}, "
            f"{entry.release.version}. Give {entry.release.name}=={entry.release.version} to go back to it."
        )


def _is_installed(target: Path, entry: Entry) -> bool:
    """Whether the very release of the entry is there: another registry's may have the same name and version."""
    manifest = target / MANIFEST
    return bool(entry.manifest_sha256) and manifest.is_file() and sha256(manifest) == entry.manifest_sha256


def _install(zip_path: Path, target: Path, location: Location, entry: Entry) -> None:
    with replacement(target, keep=LOCAL_FOLDERS) as new:
        manifest = unpack(zip_path, new)
        if manifest.release != entry.release:
            raise UserError(
                f"{location.path(entry.source)}: not the bundle that the index says. "
                f"Received: {manifest.release.key}. Tell those who keep the registry."
            )


def _check_space(zip_path: Path, entry: Entry) -> None:
    there = zip_path.stat().st_size if zip_path.exists() else 0
    needed, free = max(entry.size - there, 0) + entry.unpacked_size, shutil.disk_usage(zip_path.parent).free
    if needed > free:
        raise UserError(
            f"{zip_path.parent}: not enough space. Received: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed. "
            "Make room."
        )


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Keep a second download of the same bundle out; a killed one keeps nobody out."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder / name}: is being written. Received: the lock of another download. Wait for it to end."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(location: Location, entry: Entry, path: Path, progress: bool) -> None:
    """Complete ``path`` from what an earlier download left of it, and check it."""
    _check_space(path, entry)
    if path.exists() and path.stat().st_size > entry.size:  # of another file
        path.unlink()
    resumed = path.exists()
    size = _append(location, entry, path, progress)
    if size == entry.size and sha256(path) != entry.sha256 and resumed:  # what was left may have been of another file
        path.unlink()
        size = _append(location, entry, path, progress)
    if size < entry.size:
        raise UserError(
            f"{location.path(entry.source)}: broke off. Received: {size} of {entry.size} bytes. "
            "The same command again goes on there."
        )
    if size > entry.size or sha256(path) != entry.sha256:
        path.unlink()
        raise UserError(
            f"{location.path(entry.source)}: not the zip that the index says. Received: another SHA-256 than "
            f"{entry.sha256}. Nothing was put in place; tell those who keep the registry."
        )


def _append(location: Location, entry: Entry, path: Path, progress: bool) -> int:
    """Read the rest of a zip; the size in bytes that the file has then."""
    path.touch()
    size = path.stat().st_size
    if size == entry.size:
        return size
    zip_location, name = _beside(location, entry.source)
    with (
        path.open("r+b") as file,
        # without a terminal the bar would fill a log
        tqdm(
            total=entry.size,
            initial=size,
            desc=entry.release.key,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
    ):
        try:
            for offset, block in zip_location.blocks(name, size):
                file.seek(offset)
                file.truncate()
                file.write(block)
                size = offset + len(block)
                bar.update(size - bar.n)
                if size > entry.size:  # never more than was announced; it is not that zip
                    break
        except FileNotFoundError as error:
            raise UserError(
                f"{zip_location.path(name)}: not found. Received: an index that names it. "
                "Tell those who keep the registry."
            ) from error
    return size


def _beside(location: Location, source: str) -> tuple[Location, str]:
    """The location and name of a zip, which lies beside the index or has a URL of its own."""
    if "://" not in source:
        return location, source
    folder, _, name = source.rpartition("/")
    return locate(folder), name


def _signature(location: Location, entry: Entry) -> bytes:
    if not entry.signature:
        raise UserError(
            f"{entry.release.key} of {location.name}: cannot be verified. Received: no signature. "
            "Ask for one, or download it without --key."
        )
    try:
        return location.read(entry.signature)
    except FileNotFoundError as error:
        raise UserError(
            f"{location.path(entry.signature)}: not found. Received: an index that names it. "
            "Tell those who keep the registry."
        ) from error
