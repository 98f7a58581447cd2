# SPDX-License-Identifier: Apache-2.0
"""A volume of one file a section, or of several tiles a section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.data.volume_formats.chunked import Block, ChunkedVolume
from volseg.data.volume_formats.color_labels import grey_from_ids
from volseg.data.volume_formats.grey_kind import GreyKind, why_not_grey
from volseg.data.volume_formats.section_file import SECTION_SUFFIXES, read_section, read_section_header
from volseg.errors import UserError

__all__ = ["SectionVolume", "open_section_folder"]


class SectionVolume(ChunkedVolume):
    """Sections as image files; the files that were read last stay decoded.

    Windows that go through many sections, tile by tile, decode each section again for every tile: for those, convert
    the volume to OME-Zarr first (:mod:`volseg.data.ome_zarr`).

    Args:
        path: what stands for the volume: a folder, an index file, a single section.
        files: the tiles of each section, row by row.
        cache_bytes: decoded files are kept up to this size, at least one.
        plane: (H, W) of a section; None: that of the first file.
        n_columns: tiles in a row.
        tile_size: (H, W) of a tile; the last tile of a row or column may be smaller, or padded. None: one tile.

    Attributes:
        section_names: of each section, the name of its file without suffix; of a tiled section, of its first tile.

    Raises:
        UserError: a file is missing, cannot be read, or has another size than the first.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Sequence[Path]],
        cache_bytes: int,
        plane: tuple[int, int] | None = None,
        n_columns: int = 1,
        tile_size: tuple[int, int] | None = None,
    ) -> None:
        if plane is None:
            plane = read_section_header(files[0][0]).shape
        self._files = [list(tiles) for tiles in files]
        self._n_columns = n_columns
        self._tile_size = tile_size or plane
        self.section_names = [tiles[0].stem for tiles in files]
        found = self._check_files(plane)
        dtypes = {dtype for dtype, _ in found.values()}
        self._has_grey_in_colors = {kind for _, kind in found.values()} == {"grey values", "RGB"} and dtypes == {
            np.dtype(np.uint8),
            np.dtype(np.uint32),
        }
        dtype = np.dtype(np.uint8) if self._has_grey_in_colors else np.result_type(*dtypes)
        super().__init__(path, (len(files), *plane), dtype, (1, *self._tile_size))
        self.not_grey = "" if self._has_grey_in_colors else why_not_grey(found)
        self.is_inverted = all(kind == "inverted grey values" for _, kind in found.values())
        self._n_cached = max(1, cache_bytes // (self.dtype.itemsize * self._tile_size[0] * self._tile_size[1]))

    def _check_files(self, plane: tuple[int, int]) -> dict[Path, tuple[np.dtype[Any], GreyKind]]:
        """Type and kind of each file; those of ids differ where tools write sections with few ids in fewer bits."""
        found = {}
        for tiles in self._files:
            for i, file in enumerate(tiles):
                header = read_section_header(file)
                expected = tuple(
                    min(size, n - place * size)
                    for place, size, n in zip(divmod(i, self._n_columns), self._tile_size, plane, strict=True)
                )
                if header.shape not in (expected, self._tile_size):
                    raise UserError(
                        f"{file}: not of the size of the other sections. Received: {header.shape[0]}x{header.shape[1]}"
                        f". Expected: {expected[0]}x{expected[1]} (height x width); crop or pad it"
                    )
                found[file] = header.dtype, header.kind
        return found

    def _open(self) -> Any:
        return lru_cache(self._n_cached)(_read_as_grey if self._has_grey_in_colors else read_section)

    def _read(self, block: Block) -> NDArray[Any]:
        read_file = self._handle()
        z, y, x = block
        voxels = np.empty([along.stop - along.start for along in block], self.dtype)
        for section in range(z.start, z.stop):
            for row, in_rows, of_rows in _tiles_along(y, self._tile_size[0]):
                for column, in_columns, of_columns in _tiles_along(x, self._tile_size[1]):
                    tile = read_file(self._files[section][row * self._n_columns + column])
                    voxels[section - z.start, of_rows, of_columns] = tile[in_rows, in_columns]
        return voxels


def _read_as_grey(file: Path) -> NDArray[Any]:
    section = read_section(file)
    return grey_from_ids(file, section) if section.dtype == np.uint32 else section


def _tiles_along(wanted: slice, size: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: the tiles that hold a part of a block, the part in the tile, and the part in the block."""
    parts = []
    for tile in range(wanted.start // size, -(-wanted.stop // size)):
        start, stop = max(wanted.start, tile * size), min(wanted.stop, (tile + 1) * size)
        in_tile = slice(start - tile * size, stop - tile * size)
        parts.append((tile, in_tile, slice(start - wanted.start, stop - wanted.start)))
    return parts


def open_section_folder(path: Path, cache_bytes: int) -> SectionVolume:
    """A folder with one PNG or TIFF file a section, numbered in their names; other files are left alone.

    Raises:
        UserError: no sections, both kinds, names that are not numbered alike, a number missing or twice, or what
            :class:`SectionVolume` raises.
    """
    files = [p for p in path.iterdir() if p.suffix.lower() in SECTION_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise UserError(
            f"{path}: no sections found. Received: a folder without {', '.join(SECTION_SUFFIXES)} files. "
            "Check the path."
        )
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) > 1:
        raise UserError(f"{path}: sections must be of one kind. Received: {', '.join(suffixes)}. Keep one kind.")
    return SectionVolume(path, [[file] for file in _in_order(path, files)], cache_bytes)


def _in_order(folder: Path, files: list[Path]) -> list[Path]:
    """Sort files by the number in their names in which they differ."""
    if len(files) == 1:
        return files
    parts = {file: re.split(r"(\d+)", file.stem) for file in files}  # texts at even, numbers at odd places
    texts = {tuple(split[::2]) for split in parts.values()}
    if len(texts) > 1:
        names = ", ".join(sorted(file.name for file in files)[:: len(files) - 1])
        raise UserError(
            f"{folder}: names of sections must differ in one number only. Received: {names}. Move other files away."
        )
    numbers = {file: [int(number) for number in split[1::2]] for file, split in parts.items()}
    columns = list(zip(*numbers.values(), strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1:
        names = ", ".join(sorted(file.name for file in files)[:2])
        raise UserError(
            f"{folder}: names of sections must differ in one number. Received: {names}. "
            "Number the sections in one place."
        )
    by_number: dict[int, Path] = {}
    for file in files:
        other = by_number.setdefault(numbers[file][varying[0]], file)
        if other is not file:
            names = ", ".join(sorted([file.name, other.name]))
            raise UserError(f"{folder}: two sections have one number. Received: {names}. Keep one of them.")
    first, last = min(by_number), max(by_number)
    if last - first + 1 != len(files):
        missing = _first_missing(by_number, first)
        raise UserError(
            f"{folder}: sections are missing. Received: {len(files)} of the {last - first + 1} numbers from {first} to "
            f"{last}; the first missing is {missing}. Add them or number the sections anew."
        )
    return [by_number[number] for number in sorted(by_number)]


def _first_missing(numbers: dict[int, Path], first: int) -> int:
    while first in numbers:
        first += 1
    return first
