# SPDX-License-Identifier: Apache-2.0
"""Volumes stored as one file per section, or as several tiles per section; a folder or a JSON index lists them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.data.volume_formats.base import Block, ChunkedVolume, GreyKind, why_not_grey
from volseg.data.volume_formats.section_file import SECTION_SUFFIXES, read_section, read_section_header
from volseg.data.volume_formats.tiff_stack import TIFF_SUFFIXES, grey_from_ids
from volseg.errors import UserError

__all__ = ["SectionVolume", "find_sections", "open_section_folder", "open_section_index"]

_TILE_PLACES = ("{row}", "{column}")
PREVIEW_ENDING = "_preview.png"


class SectionVolume(ChunkedVolume):
    """Sections as image files, of which the most recently read stay decoded.

    Reading many sections window by window decodes each section once per window. For such access, first convert the
    volume to OME-Zarr (:mod:`volseg.data.ome_zarr`).

    Args:
        path: folder, index file or single section that stands for the volume.
        files: the tiles of each section, row by row.
        cache_bytes: maximum size of the decoded files kept; at least one is kept.
        plane: (H, W) of a section; None for that of the first file.
        n_columns: tiles per row.
        tile_size: (H, W) of a tile; the last tile of a row or column may be smaller or padded. None for one tile.

    Attributes:
        section_names: file name of each section, or of its first tile, without suffix.

    Raises:
        UserError: a file is missing, cannot be read, or has an unexpected size.
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
        self.is_colored = all(kind == "RGB" for _, kind in found.values())
        self.is_inverted = all(kind == "inverted grey values" for _, kind in found.values())
        self._n_cached = max(1, cache_bytes // (self.dtype.itemsize * self._tile_size[0] * self._tile_size[1]))

    def _check_files(self, plane: tuple[int, int]) -> dict[Path, tuple[np.dtype[Any], GreyKind]]:
        """Return type and kind of each file; types of ids differ if tools write sections with few ids in fewer bits."""
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
                        f"{file}: all sections must have one size, here {expected[0]}x{expected[1]} (height x width), "
                        f"got {header.shape[0]}x{header.shape[1]}; crop or pad it"
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
    """Return the tiles along an axis that hold a part of a block, with its range in the tile and in the block."""
    parts = []
    for tile in range(wanted.start // size, -(-wanted.stop // size)):
        start, stop = max(wanted.start, tile * size), min(wanted.stop, (tile + 1) * size)
        in_tile = slice(start - tile * size, stop - tile * size)
        parts.append((tile, in_tile, slice(start - wanted.start, stop - wanted.start)))
    return parts


def open_section_folder(path: Path, cache_bytes: int) -> SectionVolume:
    """Open a folder with one PNG or TIFF file per section, numbered by name; other files are ignored.

    Raises:
        UserError: there are no sections or several file types, the names are not numbered alike, a number is missing or
            used twice, or :class:`SectionVolume` refuses the files.
    """
    files = find_sections(path)
    if not files:
        raise UserError(
            f"{path}: no sections found, got a folder without {', '.join(SECTION_SUFFIXES)} files; give "
            "the folder that holds them, or convert them"
        )
    if len({file.suffix.lower() in TIFF_SUFFIXES for file in files}) > 1:
        suffixes = ", ".join(sorted({file.suffix for file in files}))
        raise UserError(f"{path}: sections must have one file type, got {suffixes}; keep one type")
    return SectionVolume(path, [[file] for file in _in_order(path, files)], cache_bytes)


def find_sections(folder: Path) -> list[Path]:
    """The section files of a folder: images but hidden ones and the pictures of results."""
    images = (path for path in folder.iterdir() if path.suffix.lower() in SECTION_SUFFIXES)
    return [path for path in images if not path.name.startswith(".") and not path.name.endswith(PREVIEW_ENDING)]


def _in_order(folder: Path, files: list[Path]) -> list[Path]:
    """Sort files by the one number in which their names differ."""
    if len(files) == 1:
        return files
    parts = {file: re.split(r"(\d+)", file.stem) for file in files}  # text at even, numbers at odd positions
    texts = Counter(tuple(split[::2]) for split in parts.values())
    if len(texts) > 1:
        [(usual, _)] = texts.most_common(1)
        like = min(file.name for file in files if tuple(parts[file][::2]) == usual)
        others = sorted(file.name for file in files if tuple(parts[file][::2]) != usual)
        raise UserError(
            f"{folder}: names of sections must differ in one number only, got {', '.join(others[:3])} beside {like}; "
            "remove other files"
        )
    numbers = {file: [int(number) for number in split[1::2]] for file, split in parts.items()}
    columns = list(zip(*numbers.values(), strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1:
        names = ", ".join(sorted(file.name for file in files)[:2])
        raise UserError(f"{folder}: names of sections must differ in exactly one number, got {names}; rename them")
    by_number: dict[int, Path] = {}
    for file in files:
        other = by_number.setdefault(numbers[file][varying[0]], file)
        if other is not file:
            names = ", ".join(sorted([file.name, other.name]))
            raise UserError(f"{folder}: two sections have the same number, got {names}; keep one of them")
    first, last = min(by_number), max(by_number)
    if last - first + 1 != len(files):
        missing = next(number for number in range(first, last) if number not in by_number)
        raise UserError(
            f"{folder}: sections are missing, got {len(files)} of the {last - first + 1} numbers from {first} to "
            f"{last}, first missing is {missing}; add or renumber them"
        )
    return [by_number[number] for number in sorted(by_number)]


def open_section_index(path: Path, cache_bytes: int) -> SectionVolume:
    """Open the volume listed by a JSON index of sections.

    Keys are ``image`` (one file per section, absolute or relative to the index file's folder), ``depth``, ``height``
    and ``width``. Tiles need ``tile_size``, ``n_rows``, ``n_columns``, and ``{row}`` and ``{column}`` in the file
    names, counted from ``tile_st``. ``tile_ratio`` must be 1. ``ndim`` and ``dtype`` are ignored, as the files define
    them.

    Raises:
        UserError: the index is invalid or inconsistent, requires resized tiles, or lists a file that is missing or has
            another size.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON, got {error}; write the index again") from error
    images = index.get("image") if isinstance(index, dict) else None
    if not (isinstance(images, list) and images and all(isinstance(name, str) for name in images)):
        raise UserError(
            f'{path}: must be an index of sections with image, depth, height and width, got no list of files in "image"'
        )
    depth, height, width = (_positive(path, index, key) for key in ("depth", "height", "width"))
    n_rows, n_columns = (_positive(path, index, key, default=1) for key in ("n_rows", "n_columns"))
    if depth != len(images):
        raise UserError(f'{path}: "depth" must be the number of files, got {depth} and {len(images)} files; correct it')
    if index.get("tile_ratio", 1) != 1:
        raise UserError(f'{path}: "tile_ratio" must be 1, got {index["tile_ratio"]}; write the tiles at full size')
    if n_rows == n_columns == 1:
        # one file per section, whatever tile_size
        return SectionVolume(path, [[_checked(path, name)] for name in images], cache_bytes, (height, width))
    tile = _positive(path, index, "tile_size")
    if (n_rows, n_columns) != (-(-height // tile), -(-width // tile)):
        raise UserError(
            f"{path}: tiles must cover the section, got {n_rows}x{n_columns} tiles of {tile} for {height}x{width}; "
            "correct n_rows, n_columns or tile_size"
        )
    if not all(place in name for name in images for place in _TILE_PLACES):
        raise UserError(f"{path}: names of tiles must have {{row}} and {{column}}, got {images[0]}; correct the names")
    first = index.get("tile_st", [0, 0])
    if not (isinstance(first, list) and len(first) == 2 and all(type(number) is int for number in first)):
        raise UserError(f'{path}: "tile_st" must be two integers, got {first}; correct it')
    files = [
        [
            _checked(path, name.replace("{row}", str(first[0] + row)).replace("{column}", str(first[1] + column)))
            for row in range(n_rows)
            for column in range(n_columns)
        ]
        for name in images
    ]
    return SectionVolume(path, files, cache_bytes, (height, width), n_columns, (tile, tile))


def _positive(path: Path, index: dict[str, Any], key: str, default: int | None = None) -> int:
    value = index.get(key, default)
    if type(value) is not int or value < 1:  # excludes True, which is an int
        raise UserError(f'{path}: "{key}" must be an integer >= 1, got {value}; correct it')
    return value


def _checked(path: Path, name: str) -> Path:
    file = path.parent / name
    if not file.is_file():
        raise UserError(
            f"{path}: all files must exist, got {file}; give paths that are absolute or relative to the index"
        )
    return file
