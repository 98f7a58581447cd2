# SPDX-License-Identifier: Apache-2.0
"""One section in one file: PNG or TIFF."""

from __future__ import annotations

import struct
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import GreyKind, kind_of_palette
from volseg.data.volume_formats.tiff_stack import TIFF_ERRORS, TIFF_SUFFIXES, TiffPages, ids_from_colors
from volseg.errors import UserError

__all__ = ["SECTION_SUFFIXES", "read_section", "read_section_header"]

PNG_SUFFIX = ".png"
SECTION_SUFFIXES = (PNG_SUFFIX, *TIFF_SUFFIXES)

# Pillow raises SyntaxError if a file is not PNG
_PNG_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)
# pixel storage of a PNG file, as Pillow names it, to the dtype of the result
_PNG_TYPES = {
    "1": np.uint8,
    "L": np.uint8,
    "I;16B": np.uint16,
    "RGB": np.uint32,
    **dict.fromkeys(("P", "P;4", "P;2", "P;1"), np.uint8),  # the palette only serves display
}


@dataclass(frozen=True)
class SectionHeader:
    """What a section's file says of itself.

    Attributes:
        shape: (H, W).
        dtype: of the pixels; uint32 if colours stand for ids.
        kind: what they look like.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    kind: GreyKind


def read_section_header(path: Path) -> SectionHeader:
    """Return shape, dtype and kind of a section without decoding its pixels.

    Raises:
        UserError: the file is missing, cannot be read, or is not one section. PNG must have 8-bit or 16-bit grey values
            or 8-bit RGB; TIFF may have any values.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        pages = TiffPages(path)
        pages.close()
        depth, height, width = pages.shape
        if depth != 1:
            raise UserError(f"{path}: a file in a folder must hold one section, got {depth} pages; give the file alone")
        return SectionHeader((height, width), pages.dtype, pages.kind)
    # unlike this class, Image.open refuses sections above 179 million pixels
    with readable(path, _PNG_ERRORS), PngImageFile(path) as image:
        width, height = image.size
        stored_as = image.tile[0][3]
        palette = image.getpalette()
    if stored_as not in _PNG_TYPES:
        raise UserError(
            f"{path}: must hold 8-bit or 16-bit grey values, or ids as 8-bit RGB, got PNG {stored_as}; convert the file"
        )
    dtype = np.dtype(_PNG_TYPES[str(stored_as)])
    kind: GreyKind = "RGB" if dtype == np.uint32 else "grey values"
    if palette is not None:
        kind = kind_of_palette(np.reshape(palette, (-1, 3)))
    return SectionHeader((height, width), dtype, kind)


def read_section(path: Path) -> NDArray[Any]:
    """Return the pixels (H, W) of a section whose header was read.

    Raises:
        UserError: the file is damaged or missing.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        with readable(path, TIFF_ERRORS), closing(TiffPages(path)) as pages:
            return pages.page(0)
    with readable(path, _PNG_ERRORS), PngImageFile(path) as image:
        pixels = np.asarray(image)
    return ids_from_colors(pixels) if pixels.ndim == 3 else pixels
