# SPDX-License-Identifier: Apache-2.0
"""JSON index of sections, as the MitoEM challenge and PyTorch Connectomics use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.data.volume_formats.section_volume import SectionVolume
from volseg.errors import UserError

__all__ = ["open_section_index"]

_TILE_PLACES = ("{row}", "{column}")


def open_section_index(path: Path, cache_bytes: int) -> SectionVolume:
    """The volume that a JSON index of sections lists.

    Keys: ``image`` (one file a section, from the index file's folder or absolute), ``depth``, ``height``, ``width``;
    for tiles ``tile_size``, ``n_rows``, ``n_columns`` and ``{row}`` and ``{column}`` in the files' names, counted from
    ``tile_st``. ``tile_ratio`` must be 1. ``ndim`` and ``dtype`` are left alone: the files say what they hold.

    Raises:
        UserError: not such a file, its numbers disagree, tiles are to be resized, or a file of it is missing or not of
            the size that it says.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON. Received: {error}. Write the index again.") from error
    images = index.get("image") if isinstance(index, dict) else None
    if not (isinstance(images, list) and images and all(isinstance(name, str) for name in images)):
        raise UserError(
            f'{path}: no index of sections. Received: no list of files under "image". Expected: the index of a volume, '
            "with image, depth, height and width"
        )
    depth, height, width = (_positive(path, index, key) for key in ("depth", "height", "width"))
    n_rows, n_columns = (_positive(path, index, key, default=1) for key in ("n_rows", "n_columns"))
    if depth != len(images):
        raise UserError(
            f'{path}: "depth" must be the number of files. Received: {depth} and {len(images)} files. Mend it.'
        )
    if index.get("tile_ratio", 1) != 1:
        raise UserError(
            f'{path}: tiles are not resized. Received: "tile_ratio" {index["tile_ratio"]}. '
            "Write the tiles at full size and set it to 1."
        )
    if n_rows == n_columns == 1:
        # Such an index names one file a section, whatever its tile_size.
        return SectionVolume(path, [[_checked(path, name)] for name in images], cache_bytes, (height, width))
    tile = _positive(path, index, "tile_size")
    if (n_rows, n_columns) != (-(-height // tile), -(-width // tile)):
        raise UserError(
            f"{path}: tiles must cover the section. Received: {n_rows}x{n_columns} tiles of {tile} for "
            f"{height}x{width}. Mend n_rows, n_columns or tile_size."
        )
    if not all(place in name for name in images for place in _TILE_PLACES):
        raise UserError(f"{path}: names of tiles need {{row}} and {{column}}. Received: {images[0]}. Mend the names.")
    first = index.get("tile_st", [0, 0])
    if not (isinstance(first, list) and len(first) == 2 and all(type(number) is int for number in first)):
        raise UserError(f'{path}: "tile_st" must be two whole numbers. Received: {first}. Mend it.')
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
    if type(value) is not int or value < 1:  # True is an int as well
        raise UserError(f'{path}: "{key}" must be a positive whole number. Received: {value}. Mend it.')
    return value


def _checked(path: Path, name: str) -> Path:
    file = path.parent / name
    if not file.is_file():
        raise UserError(
            f"{path}: a section is missing. Received: {file}, which is no file. Mend the names in the index, or name "
            "the files from its folder on."
        )
    return file
