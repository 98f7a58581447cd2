# SPDX-License-Identifier: Apache-2.0
"""Find, download and verify bundles of a registry."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.registry.index import INDEX, Entry, read_index
from volseg.registry.large_files import LARGE_FILES, LargeFile, large_files
from volseg.registry.location import Location, locate
from volseg.registry.manifest import LOCAL_FOLDERS, MANIFEST, Change, Manifest, sha256
from volseg.registry.release import Release
from volseg.registry.signature import check_signature
from volseg.storage.files import complete_replacement, only_process, replacement, writing

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
        raise UserError(f"{registry}: has no bundle {name!r}; it holds {known}")
    if not has_version:
        return max(versions, key=lambda entry: entry.release.order)
    wanted = Release(name, version)
    if wanted not in [entry.release for entry in versions]:
        known = ", ".join(entry.release.version for entry in versions)
        raise UserError(f"{registry}: has no version {version} of {name}; choose one of {known}")
    return next(entry for entry in versions if entry.release == wanted)


def download(
    bundle: str,
    registry: str | Path,
    bundle_dir: str | Path,
    public_key: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Put a bundle into ``bundle_dir/NAME``, complete and verified, or leave what is there untouched.

    An interrupted download resumes where it stopped. Files that the bundle's ``large_files.yml`` lists are downloaded,
    too. The SHA-256 of the zip and of every file is checked before anything is put in place. Another installed version
    is replaced in one step; its folders ``data`` and ``output``, which running a bundle writes, move to the new one.

    Args:
        bundle: ``NAME`` or ``NAME==VERSION``; without a version the newest, unless a newer one is installed.
        registry: folder or URL.
        bundle_dir: folder of bundles, created if absent.
        public_key: PEM file of the signer; a zip without a signature by this key is rejected.
        force: replace whatever is there, including your own changes and folders that are not downloaded bundles.
        progress: show a progress bar on a terminal.

    Returns:
        the bundle's folder.

    Raises:
        UserError: the bundle cannot be downloaded, verified or written; ``bundle_dir/NAME`` is unchanged.
    """
    location = locate(registry)
    key = None if public_key is None else Path(public_key)
    entry = find(read_index(location, key, newest="==" not in bundle), bundle, location.name)
    signature = _signature(location, entry) if key is not None else b""
    bundle_dir = Path(bundle_dir)
    target = bundle_dir / entry.release.name
    with writing(bundle_dir), _alone(bundle_dir, entry.release.name):
        complete_replacement(target, LOCAL_FOLDERS)
        if not force and os.path.lexists(target):
            _check_replaceable(target, entry, is_newest="==" not in bundle)
        # a signature vouches for the zip: with a key the zip is always fetched and checked
        if force or key is not None or not _is_installed(target, entry):
            zip_path = bundle_dir / f".{entry.release.zip_name}.part"
            _check_space(zip_path, entry)
            _fetch(_zip(location, entry), zip_path, progress)
            if key is not None:
                try:
                    check_signature(zip_path, signature, key, entry.release.key)
                except UserError:
                    zip_path.unlink()
                    raise
            _install(zip_path, target, location, entry, progress)
        # this version's zip, and what interrupted downloads of other versions left
        for left in bundle_dir.glob(f".{entry.release.name}_v*.part"):
            left.unlink()
    return target


def verify(
    path: str | Path, registry: str | Path | None = None, public_key: str | Path | None = None
) -> tuple[Manifest, list[Change]]:
    """Compare every file of an installed bundle with its manifest, and the manifest with what was published.

    Args:
        path: the bundle's folder.
        registry: folder or URL where the bundle was published; without it the manifest is taken at its word.
        public_key: PEM file of the signer, whose signature of the published zip is checked; needs a registry.

    Returns:
        the manifest and the files that are missing, changed or added, Python's caches among them.

    Raises:
        UserError: the folder is not a downloaded bundle, cannot be read, or its manifest is not the published one.
    """
    if public_key is not None and registry is None:
        raise UserError(f"{public_key}: a key needs the registry with the signature; add --registry")
    folder = Path(path)
    manifest = Manifest.read(folder)
    if registry is not None:
        key = None if public_key is None else Path(public_key)
        _check_published(folder / MANIFEST, manifest.release, locate(registry), key)
    return manifest, _changes(manifest, folder, caches=True)


def _changes(manifest: Manifest, folder: Path, caches: bool) -> list[Change]:
    try:
        changes = manifest.changes(folder, caches)
        if LARGE_FILES not in manifest.files or any(change.path == LARGE_FILES for change in changes):
            return changes
        return manifest.changes(folder, caches, {file.path: file.sha256 for file in large_files(folder)})
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be read: {error.strerror or error}; check the permissions"
        ) from error


def _check_published(path: Path, release: Release, location: Location, key: Path | None) -> None:
    """Refuse a manifest that is not that of the release in a registry."""
    entries = read_index(location, key, newest=False)
    entry = find(entries, f"{release.name}=={release.version}", location.name)
    published = entry.manifest_sha256
    if key is not None:
        signature = _signature(location, entry)
        with tempfile.TemporaryDirectory() as temporary, writing(temporary):
            zip_path, folder = Path(temporary) / entry.release.zip_name, Path(temporary) / entry.release.name
            _check_space(zip_path, entry)
            _fetch(_zip(location, entry), zip_path, progress=True)
            check_signature(zip_path, signature, key, entry.release.key)
            unpack(zip_path, folder)
            published = sha256(folder / MANIFEST)
    if not published:
        raise UserError(f"{location.path(INDEX)}: does not list the manifest of {release.key}; publish it again")
    if sha256(path) != published:
        raise UserError(
            f"{path}: is not the manifest of {release.key} in {location.name}; download the bundle again with --force"
        )


def _check_replaceable(target: Path, entry: Entry, is_newest: bool) -> None:
    """Refuse to replace anything but an unchanged bundle, or a newer version than the registry's newest."""
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise UserError(f"{target}: exists and is not a downloaded bundle; move it away or give --force to replace it")
    manifest = Manifest.read(target)
    # Python's caches are no work of the user's
    if changes := _changes(manifest, target, caches=False):
        count = f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
        first = ", ".join(f"{change.path} ({change.kind})" for change in changes[:3])
        raise UserError(
            f"{target}: has {count} since its release, {first}{', ...' if len(changes) > 3 else ''}; "
            "move it away or give --force to discard them"
        )
    if is_newest and manifest.release.order > entry.release.order:
        raise UserError(
            f"{target}: version {manifest.release.version} is newer than the registry's newest, "
            f"{entry.release.version}; give {entry.release.name}=={entry.release.version} to go back to that"
        )


def _is_installed(target: Path, entry: Entry) -> bool:
    """Whether this very release is installed: another registry may use the same name and version."""
    manifest = target / MANIFEST
    return bool(entry.manifest_sha256) and manifest.is_file() and sha256(manifest) == entry.manifest_sha256


def _install(zip_path: Path, target: Path, location: Location, entry: Entry, progress: bool) -> None:
    with replacement(target, keep=LOCAL_FOLDERS) as new:
        manifest = unpack(zip_path, new)
        if manifest.release != entry.release:
            raise UserError(
                f"{location.path(entry.source)}: holds {manifest.release.key}, but the index lists it as "
                f"{entry.release.key}; report this to the registry's maintainers"
            )
        for large in large_files(new, location.path(entry.source)):
            if large.path not in manifest.files:
                part = zip_path.with_name(f".{entry.release.key}.{large.sha256}.part")  # outlives the new folder
                _fetch(_large(large), part, progress)
                (new / large.path).parent.mkdir(parents=True, exist_ok=True)
                part.rename(new / large.path)


def _check_space(zip_path: Path, entry: Entry) -> None:
    there = zip_path.stat().st_size if zip_path.exists() else 0
    needed, free = max(entry.size - there, 0) + entry.unpacked_size, shutil.disk_usage(zip_path.parent).free
    if needed > free:
        raise UserError(
            f"{zip_path.parent}: not enough space: needs {needed / 1e6:.0f} MB, has {free / 1e6:.0f} MB; free some"
        )


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Exclude a second download of the same bundle; a killed one excludes nobody."""
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder / f".{name}.lock", f"{folder / name}: another download is writing it; wait for it to end"):
        yield


@dataclass(frozen=True)
class _Source:
    """A file to fetch: where it is, what it must be, and where that is written; the size in bytes may be unknown."""

    location: Location
    name: str
    sha256: str
    size: int | None
    title: str
    list: str

    @property
    def path(self) -> str:
        return self.location.path(self.name)

    def is_complete(self, path: Path) -> bool:
        return path.exists() and self.size in (None, path.stat().st_size) and sha256(path) == self.sha256


def _zip(location: Location, entry: Entry) -> _Source:
    return _Source(*_beside(location, entry.source), entry.sha256, entry.size, entry.release.key, "the index")


def _large(large: LargeFile) -> _Source:
    folder, _, name = large.url.rpartition("/")
    return _Source(locate(folder), name, large.sha256, None, large.path, LARGE_FILES)


def _fetch(source: _Source, path: Path, progress: bool) -> None:
    """Complete ``path``, which an interrupted download may have begun, and check it."""
    if source.is_complete(path):
        return
    if path.exists() and source.size is not None and path.stat().st_size >= source.size:  # of another file
        path.unlink()
    resumed = path.exists()
    size = _append(source, path, progress)
    is_short = source.size is not None and size < source.size
    if resumed and not is_short and not source.is_complete(path):  # what was left may have been of another file
        path.unlink()
        size = _append(source, path, progress)
        is_short = source.size is not None and size < source.size
    if is_short:
        raise UserError(
            f"{source.path}: broke off after {size} of {source.size} bytes; run the same command again to resume"
        )
    if not source.is_complete(path):
        path.unlink()
        raise UserError(
            f"{source.path}: does not have the SHA-256 that {source.list} lists, {source.sha256}; "
            "nothing was installed; report this to the registry's maintainers"
        )


def _append(source: _Source, path: Path, progress: bool) -> int:
    """Download the rest of a file and return the resulting size in bytes."""
    path.touch()
    size = path.stat().st_size
    with (
        path.open("r+b") as file,
        tqdm(
            total=source.size,
            initial=size,
            desc=source.title,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,  # None: no bar in a log
        ) as bar,
        _listed(source.location, source.name, source.list),
    ):
        for offset, block in source.location.blocks(source.name, size):
            file.seek(offset)
            file.truncate()
            file.write(block)
            size = offset + len(block)
            bar.update(size - bar.n)
            if source.size is not None and size > source.size:  # another file: read no more than was announced
                break
    return size


@contextmanager
def _listed(location: Location, name: str, where: str = "the index") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{location.path(name)}: not found, although {where} lists it; report this to the registry's maintainers"
        ) from error


def _beside(location: Location, source: str) -> tuple[Location, str]:
    """The location and name of a zip, which is beside the index or has its own URL."""
    if "://" not in source:
        return location, source
    folder, _, name = source.rpartition("/")
    return locate(folder), name


def _signature(location: Location, entry: Entry) -> bytes:
    if not entry.signature:
        raise UserError(
            f"{entry.release.key} of {location.name}: has no signature to verify; ask for one or omit --key"
        )
    with _listed(location, entry.signature):
        return location.read(entry.signature)
