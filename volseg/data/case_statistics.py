# SPDX-License-Identifier: Apache-2.0
"""``statistics.json`` of a folder of results: what was found in each image, or why nothing was."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.data.volume_reader import volume_name
from volseg.errors import UserError
from volseg.storage.files import remove_leftovers, write_json

__all__ = ["RESULT_KEYS", "STATISTICS_NAME", "CaseStatistics", "file_state", "short_name"]

STATISTICS_NAME = "statistics.json"
LONGEST_NAME = 180  # bytes
RESULT_KEYS = ("segmentation", "instances", "dicom_seg", "seg_nrrd")
"""Keys of an entry under which it names files with the result of an image."""


class CaseStatistics:
    """The entries of all images that were ever segmented into a folder; an image's newest replaces its others.

    Args:
        folder: of the results.
        ending: of the file with an image's result, after its name.
        inputs: folder in which the images lie at any depth; names of results tell their folders below it.
        key: of the result's name in an entry.
    """

    def __init__(
        self, folder: str | Path, ending: str, inputs: str | Path | None = None, key: str = "segmentation"
    ) -> None:
        self.path = Path(folder) / STATISTICS_NAME
        self.ending = ending
        self.key = key
        self.inputs = Path(inputs).absolute() if inputs else None
        self.entries: dict[str, dict[str, Any]] = {}

    def read(self) -> None:
        """Take up the entries of earlier runs, and remove what killed ones left unfinished.

        Raises:
            UserError: the file is there and holds something else.
        """
        remove_leftovers(self.path.parent, below=False)
        if not self.path.is_file():
            return
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = {str(entry["image"]): dict(entry) for entry in entries}
            if wrong := [entry for entry in entries if not isinstance(entry.get(self.key, ""), str)]:
                raise TypeError(f"{self.key} {wrong[0][self.key]}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.path} must list the results of this folder, got {error!r}; choose another folder"
            ) from error

    def add(self, image: str, entry: Mapping[str, Any]) -> None:
        """Write the entry of an image; entries are in the order of images, whichever was segmented last."""
        self.entries = dict(sorted({**self.entries, image: {"image": image, **entry}}.items()))
        write_json(self.path, list(self.entries.values()))

    def note_failure(self, image: str, reason: str) -> None:
        """Write why an image has no new result; what is said of a result that is still there stays."""
        self.add(image, {**(self.entries[image] if self._has_result(image) else {}), "error": reason})

    def is_finished(self, image: str, fingerprint: str) -> bool:
        """Whether the result of an image is there, from the same content and settings."""
        entry = self.entries.get(image, {})
        others = [self.path.parent / entry[key] for key in RESULT_KEYS if key in entry]
        return (
            self._has_result(image)
            and all(path.exists() for path in others)
            and entry.get("fingerprint") == fingerprint
            and "error" not in entry
        )

    def _has_result(self, image: str) -> bool:
        name = self.entries.get(image, {}).get(self.key)
        return name is not None and (self.path.parent / name).exists()

    def result_name(self, image: str) -> str:
        """Name of an image's result: what it is called already, or one that no other image's is called."""
        own = self.entries.get(image, {}).get(self.key)
        if own:
            return own
        path = Path(image)
        folders: tuple[str, ...] = ()
        if self.inputs and path != self.inputs and path.is_relative_to(self.inputs):
            folders = path.parent.relative_to(self.inputs).parts
        stem, whole = (short_name("_".join([*folders, name])) for name in (volume_name(path), path.name))
        candidates = itertools.chain([stem, whole], (f"{stem}_{number}" for number in itertools.count(2)))
        taken = {entry.get(self.key) for entry in self.entries.values()}
        return next(name + self.ending for name in candidates if name + self.ending not in taken)


def short_name(name: str) -> str:
    """A name to which endings can be added, as file systems allow 255 bytes: a long one ends in its hash."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    start = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def file_state(image: str) -> str:
    """Hash of the sizes and times of an image's files: those in a folder, or those beside it with the same name."""
    path = Path(image)
    if not path.exists():  # a data set of an HDF5 file
        path = Path(image.rpartition(":")[0])
    files = path.rglob("*") if path.is_dir() else {path, *path.parent.glob(f"{glob.escape(volume_name(path))}.*")}
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    return hashlib.sha256(repr(states).encode()).hexdigest()
