# SPDX-License-Identifier: Apache-2.0
"""``model_info.json``: what a registry holds, in the format of MONAI's model zoo with further fields."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from volseg.errors import UserError
from volseg.registry.location import Location
from volseg.registry.release import Release
from volseg.registry.signature import check_signature

__all__ = ["INDEX", "INDEX_SIGNATURE", "Entry", "as_index", "read_index"]

logger = logging.getLogger(__name__)

INDEX = "model_info.json"
INDEX_SIGNATURE = f"{INDEX}.sig"
# a file beside the index
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
WEB_URL = re.compile(r"https?://[^\s/]+/\S+")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One released version in an index.

    Args:
        release: name and version.
        source: name of the zip beside the index, or its URL.
        checksum: SHA-1 of the zip, for the zoo's tools; not used here.
        sha256: of the zip.
        size: of the zip in bytes.
        unpacked_size: of its files in bytes.
        date: of publication, ``YYYY-MM-DD``.
        license: SPDX identifiers.
        signature: name of the signature beside the index, or empty.
        title: readable name of the bundle.
        task: what it does.
        metrics: numbers by name, possibly grouped, as in the bundle's metadata.
        picture: name of a picture beside the index, or empty.
        manifest_sha256: of the manifest inside the zip, which identifies an installed bundle; may be empty.
    """

    release: Release
    source: str
    checksum: str
    sha256: str
    size: int
    unpacked_size: int
    date: str
    license: str
    signature: str = ""
    title: str = ""
    task: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    picture: str = ""
    manifest_sha256: str = ""

    @classmethod
    def parse(cls, key: str, content: Any) -> Entry:
        """Read the value of a key of an index; fields that this version does not know are ignored.

        Raises:
            ValueError: it is not an entry.
        """
        release = Release.parse(key)
        if not isinstance(content, dict):
            raise ValueError(f"{key} is {type(content).__name__}, not an object")
        facts = {item.name: content[item.name] for item in fields(cls)[1:] if item.name in content}
        for item in fields(cls)[1:]:
            if item.name not in facts and item.default is MISSING and item.default_factory is MISSING:
                raise ValueError(f"{key} without {item.name}")
            if item.name in facts and not _fits(facts[item.name], str(item.type)):
                raise ValueError(f"{key} with {item.name} {facts[item.name]!r:.80}")
        entry = cls(release=release, **facts)
        if not SHA256.fullmatch(entry.sha256) or entry.size <= 0 or entry.unpacked_size < 0:
            raise ValueError(f"{key} with sha256 {entry.sha256!r:.80}, {entry.size} and {entry.unpacked_size} bytes")
        if not (PLAIN_NAME.fullmatch(entry.source) or WEB_URL.fullmatch(entry.source)):
            raise ValueError(f"{key} with source {entry.source!r:.80}")
        for name in (entry.signature, entry.picture):
            if name and not PLAIN_NAME.fullmatch(name):
                raise ValueError(f"{key} with the file {name!r:.80}")
        return entry

    def as_json(self) -> dict[str, Any]:
        """The value for the key ``NAME_vVERSION``."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "release"}


def _fits(value: Any, kind: str) -> bool:
    """Whether a value has the type of a field; text must hold no control characters."""
    if kind == "str":
        return isinstance(value, str) and value.isprintable()
    if kind == "int":
        return type(value) is int
    return isinstance(value, dict)


def as_index(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """The content of ``model_info.json``: bundles by name, the versions of each from the oldest to the newest."""
    in_order = sorted(entries, key=lambda entry: (entry.release.name, entry.release.order))
    return {entry.release.key: entry.as_json() for entry in in_order}


def read_index(location: Location, public_key: Path | None = None, newest: bool = True) -> list[Entry]:
    """The entries of a registry, by name and from the oldest version to the newest.

    Args:
        location: the registry.
        public_key: PEM file of the signer.
        newest: whether the newest version is looked for; without a signature, a warning says that it could be hidden.

    Raises:
        UserError: the registry cannot be reached, or its index is missing, invalid or not signed with this key.
    """
    path = location.path(INDEX)
    try:
        text = location.read(INDEX)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; give the folder or URL of a registry") from error
    if public_key is not None:
        _check_signed(location, text, public_key, newest)
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__}, not an object")
        entries = [Entry.parse(key, value) for key, value in content.items()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a registry index: {error}; publish to the registry again") from error
    return sorted(entries, key=lambda entry: (entry.release.name, entry.release.order))


def _check_signed(location: Location, text: bytes, public_key: Path, newest: bool) -> None:
    try:
        signature = location.read(INDEX_SIGNATURE)
    except FileNotFoundError:
        if newest:
            logger.warning(
                "%s: not found, so the registry could hide versions; publish to it with --sign, or name the version",
                location.path(INDEX_SIGNATURE),
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        path.write_bytes(text)
        check_signature(path, signature, public_key, location.path(INDEX))
