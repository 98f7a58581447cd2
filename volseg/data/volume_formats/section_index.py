# SPDX-License-Identifier: Apache-2.0
"""Open JSON indices of sections, as used by the MitoEM challenge and PyTorch Connectomics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.data.volume_formats.section_volume import SectionVolume
from volseg.errors import UserError

__all__ = ["open_section_index"]

_TILE_PLACES = ("{row}", "{column}")


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
    except (OSError, ValueError) as error:
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
