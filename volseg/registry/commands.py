# SPDX-License-Identifier: Apache-2.0
"""The commands of ``python -m volseg``, which ``python -m tools`` offers too."""

from __future__ import annotations

import json
from collections.abc import Callable

from volseg.console.fire_commands import one_line
from volseg.errors import UserError
from volseg.registry import client
from volseg.registry.index import read_index
from volseg.registry.location import locate
from volseg.registry.manifest import CACHE, Manifest

__all__ = ["COMMANDS"]


def list_bundles(registry: str) -> None:
    """List the bundles of a registry with newest version, date, size, licence and older versions.

    Args:
        registry: folder or URL.
    """
    location = locate(registry)
    entries = read_index(location)
    if not entries:
        print(f"{location.name}: no bundles yet")
        return
    rows = [("NAME", "VERSION", "DATE", "SIZE", "LICENCE", "OLDER VERSIONS")]
    for name in sorted({entry.release.name for entry in entries}):
        *older, newest = [entry for entry in entries if entry.release.name == name]
        versions = ", ".join(entry.release.version for entry in reversed(older)) or "-"
        size = f"{newest.size / 1e6:.1f} MB"
        rows.append((name, newest.release.version, newest.date, size, newest.license, versions))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def info(bundle: str, registry: str) -> None:
    """Show everything that a registry's index says about a bundle.

    Args:
        bundle: NAME for the newest version, or NAME==VERSION.
        registry: folder or URL.
    """
    location = locate(registry)
    entry = client.find(read_index(location), bundle, location.name)
    facts = {"name": entry.release.name, "version": entry.release.version} | entry.as_json()
    facts["size"] = f"{entry.size} bytes"
    facts["unpacked_size"] = f"{entry.unpacked_size} bytes"
    facts["metrics"] = one_line(json.dumps(entry.metrics)) if entry.metrics else ""
    for name, value in facts.items():
        if value:
            print(f"{name:16} {value}")


def download(bundle: str, registry: str, bundle_dir: str, key: str | None = None, force: bool = False) -> None:
    """Download a bundle into bundle_dir/NAME, complete and verified; run it again to resume an interrupted download.

    Args:
        bundle: NAME for the newest version, or NAME==VERSION.
        registry: folder or URL.
        bundle_dir: folder of bundles.
        key: PEM file of the public key; a zip that was not signed with its private key is rejected.
        force: replace whatever is there, including your own changes and folders that are not downloaded bundles.
    """
    folder = client.download(bundle, registry, bundle_dir, key, force)
    manifest = Manifest.read(folder)
    print(f"{folder}: {manifest.release.name} {manifest.release.version}, {len(manifest.files)} files, all as released")


def verify(path: str, registry: str | None = None, key: str | None = None) -> None:
    """Compare an installed bundle with its release and list the changes; exit with status 1 if there are any.

    The folders data and output, which running a bundle writes, are ignored. Python's caches are listed.

    Args:
        path: the bundle's folder.
        registry: folder or URL; the bundle's manifest must be the one that was published there. Without it the
            files are compared with the bundle's own manifest.
        key: PEM file of the public key; the published zip must be signed with its private key.
    """
    manifest, changes = client.verify(path, registry, key)
    for change in changes:
        print(f"{change.kind:8} {one_line(change.path)}")
    release = f"{manifest.release.name} {manifest.release.version}"
    if changes:
        count = f"{len(changes)} change{'' if len(changes) == 1 else 's'}"
        if all(CACHE in change.path.split("/") for change in changes):
            advice = (
                f"Python can run them in place of the modules; delete the folders {CACHE} and verify with python -B"
            )
        else:
            advice = "to undo, download it again with --force"
        raise UserError(f"{path}: {count} since the release of {release}; {advice}")
    published = f", as published in {registry}" if registry else ""
    signed = f" and signed by the holder of {key}" if key else ""
    print(f"{path}: {release}, {len(manifest.files)} files, all as released{published}{signed}")


COMMANDS: dict[str, Callable[..., None]] = {"list": list_bundles, "info": info, "download": download, "verify": verify}
