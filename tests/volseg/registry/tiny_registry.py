# SPDX-License-Identifier: Apache-2.0
"""Registries of tiny bundles for tests."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from volseg.registry.index import INDEX, Entry, as_index
from volseg.registry.manifest import MANIFEST, Manifest
from volseg.registry.release import Release

NAME = "tiny_bundle"


def bundle_files(version: str = "0.1.0", payload: int = 0) -> dict[str, bytes]:
    """The files of a bundle by path, with ``payload`` bytes of weights that nothing compresses."""
    weights = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(-(-payload // 32)))[:payload]
    return {
        "LICENSE": b"Apache-2.0\n",
        "configs/metadata.json": json.dumps({"version": version}).encode(),
        "docs/README.md": f"# Tiny {version}\n".encode(),
        "models/model.pt": weights,
        "volseg/__init__.py": b"",
    }


def manifest_of(files: dict[str, bytes], version: str = "0.1.0", name: str = NAME) -> Manifest:
    return Manifest(
        Release(name, version),
        "0" * 40,
        {"code": "Apache-2.0"},
        {"torch": "2.13.0"},
        {path: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for path, data in files.items()},
    )


def as_bytes(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.as_json(), indent=4) + "\n").encode()


def write_zip(path: Path, entries: dict[str, bytes] | list[tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """A zip as ``python -m tools pack`` writes it, of files by name, or of entries of any kind."""
    if isinstance(entries, dict):
        entries = [(zip_info(name), data) for name, data in sorted(entries.items())]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return path


def zip_info(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


def bundle_zip(
    path: Path, files: dict[str, bytes] | None = None, version: str = "0.1.0", manifest: bytes | None = None
) -> Path:
    """The zip of a bundle; with ``manifest`` another text than that of the files."""
    files = bundle_files(version) if files is None else files
    text = as_bytes(manifest_of(files, version)) if manifest is None else manifest
    return write_zip(path, {f"{NAME}/{name}": data for name, data in files.items()} | {f"{NAME}/{MANIFEST}": text})


def entry_of(path: Path, **facts: object) -> Entry:
    """The entry of a zip that :func:`bundle_zip` wrote."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read(f"{NAME}/{MANIFEST}")
        unpacked_size = sum(entry.file_size for entry in archive.infolist())
    defaults: dict[str, object] = {
        "release": Release.parse(path.stem),
        "source": path.name,
        "checksum": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "unpacked_size": unpacked_size,
        "date": "2026-01-02",
        "license": "Apache-2.0",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    return Entry(**(defaults | facts))


def publish(folder: Path, *entries: Entry) -> None:
    """Write the index of a registry, of these entries and those that it has."""
    path = folder / INDEX
    index = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(index | as_index(entries)))


def release(folder: Path, version: str = "0.1.0", payload: int = 0, **facts: object) -> Entry:
    """Put a version of the tiny bundle into a registry."""
    folder.mkdir(exist_ok=True)
    path = bundle_zip(folder / f"{NAME}_v{version}.zip", bundle_files(version, payload), version)
    entry = entry_of(path, **facts)
    publish(folder, entry)
    return entry


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by path, and empty folders as such."""
    return {
        path.relative_to(folder).as_posix() + ("/" if path.is_dir() else ""): b""
        if path.is_dir()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() or (path.is_dir() and not any(path.iterdir()))
    }
