# SPDX-License-Identifier: Apache-2.0
"""How MitoEM is distributed: parts, folders, archives, and the sections in them as pairs of volumes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resunet_mitoem.dataset_writer import UNPACKED, Pair, checked_pair
from volseg.data.open_volume import ChunkedVolume
from volseg.data.published_archive import unpack
from volseg.data.volume_formats.section_volume import SectionVolume
from volseg.errors import UserError

MITOEM_VOXEL_SIZE_NM = (30.0, 8.0, 8.0)


@dataclass(frozen=True)
class Part:
    """Consecutive sections of both volumes of MitoEM.

    Attributes:
        name: of the part; ``training`` and ``validation`` are splits.
        first: number of its first section, in the names of the files.
        n_sections: how many there are.
        label_folder: holds its labels; None: they are not published.
    """

    name: str
    first: int
    n_sections: int
    label_folder: str | None

    @property
    def numbers(self) -> range:
        """Numbers of its sections."""
        return range(self.first, self.first + self.n_sections)


PARTS = (
    Part("training", 0, 400, "mito-train-v2"),
    Part("validation", 400, 100, "mito-val-v2"),
    Part("test", 500, 500, None),
)


@dataclass(frozen=True)
class _Files:
    """How the sections of an image or of a label are distributed: ``folder/file``, by their numbers, in an archive."""

    folder: str
    file: str
    archive: str


IMAGES = _Files("im", "im{:04d}.png", "EM30-{}-im.zip")
_LABEL_FILE = "seg{:04d}.tif"
_LABEL_ARCHIVE = "EM30-{}-mito-train-val-v2.zip"
# A section is 4096 x 4096 pixels; as ids of four bytes 64 MiB.
_MAX_FILE_BYTES = 128 * 2**20

SPECIMENS = {"rat": "R", "human": "H"}
_NAMES = {
    specimen: re.compile(rf"(?:em30|mitoem)[-_ ]?{letter}(?![a-z])|(?<![a-z]){specimen}(?![a-z])", re.IGNORECASE)
    for specimen, letter in SPECIMENS.items()
}


def mitoem_pairs(
    specimen: str, root: Path, output: Path, parts: Sequence[Part], skipped: Counter[str]
) -> Iterator[Pair]:
    """Volumes of a specimen, one per part; what is missing is counted in ``skipped``."""
    located = [[(files, _locate(specimen, files, root, output)) for files in files_of(part)] for part in parts]
    if not any(place for places in located for _, place in places):
        skipped[f"{specimen} volume not found"] += 1
        return
    for part, places in zip(parts, located, strict=True):
        missing = [f"{files.folder}/" for files, place in places if place is None]
        if missing:
            skipped[f"{specimen} {part.name} without {' and '.join(missing)}"] += 1
            continue
        name = f"{specimen}_{part.name}"
        image, *label = (
            _open_sections(place, files, part, output / UNPACKED / f"{name}_{files.folder}")
            for files, place in places
            if place is not None
        )
        yield checked_pair(name, part.name, image, label[0] if label else None, MITOEM_VOXEL_SIZE_NM)


def files_of(part: Part) -> list[_Files]:
    return [IMAGES] + ([_Files(part.label_folder, _LABEL_FILE, _LABEL_ARCHIVE)] if part.label_folder else [])


def _locate(specimen: str, files: _Files, root: Path, output: Path) -> Path | None:
    """The folder or the archive that holds sections of a volume of MitoEM."""
    folders = [
        folder
        for above in ("", "*/", "*/*/")
        for folder in sorted(root.glob(f"{above}{files.folder}"))
        if folder.is_dir() and not folder.is_relative_to(output / UNPACKED)
    ]
    folders = [folder for folder in folders if _specimen(folder, root) == specimen]
    if len(folders) > 1:
        raise UserError(
            f"{folders[1]}: the {specimen} volume must have one folder {files.folder}/, found {folders[0]} too; remove "
            "one of them"
        )
    archive = root / files.archive.format(SPECIMENS[specimen])
    return folders[0] if folders else archive if archive.is_file() else None


def _specimen(folder: Path, root: Path) -> str:
    """``rat`` or ``human``, from the names of the folders above, or of the download itself."""
    for name in (str(folder.relative_to(root)), root.name):
        specimens = [specimen for specimen, pattern in _NAMES.items() if pattern.search(name)]
        if len(specimens) == 1:
            return specimens[0]
    raise UserError(
        f"{folder}: the path does not say whether it is rat or human; put it under a folder MitoEM-R, EM30-R or rat, "
        "or MitoEM-H, EM30-H or human"
    )


def _open_sections(place: Path, files: _Files, part: Part, unpacked: Path) -> ChunkedVolume:
    """The sections of a part by their numbers: others may lie beside them, and one that is missing is named."""
    folder = place
    if not place.is_dir():
        folder = unpacked
        if not folder.is_dir():
            names = "|".join(files.file.replace("{:04d}", numbers) for numbers in number_patterns(part.numbers))
            unpack(place, folder, re.compile(rf"(?:[^/]+/)*{files.folder}/(?P<path>{names})"), _MAX_FILE_BYTES)
    return SectionVolume(folder, [[folder / files.file.format(number)] for number in part.numbers], cache_bytes=0)


def number_patterns(numbers: range) -> Iterator[str]:
    """Regular expressions of numbers of four digits, one for each hundred."""
    for hundred in range(numbers[0] // 100, numbers[-1] // 100 + 1):
        last_digits = [f"{number % 100:02d}" for number in numbers if number // 100 == hundred]
        yield f"{hundred:02d}" + (r"\d\d" if len(last_digits) == 100 else f"(?:{'|'.join(last_digits)})")
