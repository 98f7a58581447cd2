# SPDX-License-Identifier: Apache-2.0
"""``large_files.yml``: files of a bundle that are published elsewhere, in the format of MONAI's model zoo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from volseg.errors import UserError
from volseg.registry.manifest import SHA256, safe_path

__all__ = ["LARGE_FILES", "LargeFile", "large_files"]

LARGE_FILES = "large_files.yml"
SCHEMES = ("https://", "http://")


@dataclass(frozen=True)
class LargeFile:
    """A file of a bundle that is published elsewhere.

    Args:
        path: relative to the bundle's folder.
        url: where it is published.
        sha256: in hexadecimal digits.
    """

    path: str
    url: str
    sha256: str


def large_files(folder: Path, source: object = None) -> list[LargeFile]:
    """The files that a bundle's ``large_files.yml`` lists; none without that file.

    Args:
        folder: the bundle's.
        source: where the folder comes from, for errors; by default the folder itself.

    Raises:
        UserError: the file cannot be read, or an entry has no portable path, no URL or no SHA-256.
    """
    path = folder / LARGE_FILES
    if not path.is_file():
        return []
    try:
        content = yaml.safe_load(path.read_bytes())
        return [_entry(entry) for entry in content["large_files"]]
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path if source is None else f'{source}, {LARGE_FILES}'}: not a list of large files with path, url and "
            f"hash_val: {' '.join(str(reason).split())}; pack the bundle again"
        ) from error


def _entry(entry: dict[str, Any]) -> LargeFile:
    path, url, digest = safe_path(str(entry["path"])), str(entry["url"]), str(entry["hash_val"])
    if not url.startswith(SCHEMES) or not url.isprintable() or " " in url or "/" not in url.partition("://")[2]:
        raise ValueError(f"{path} has url {url!r:.200}")
    kind = entry.get("hash_type", "sha256")
    if kind != "sha256" or not SHA256.fullmatch(digest):
        raise ValueError(f"{path} has hash_type {kind!r:.80} and hash_val {digest!r:.80}, which is no SHA-256")
    return LargeFile(path, url, digest)
