# SPDX-License-Identifier: Apache-2.0
"""One section in one file: PNG or TIFF."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from volseg.data.stored_volume import unreadable
from volseg.data.volume_formats.color_labels import ids_from_colors
from volseg.data.volume_formats.grey_kind import GreyKind, kind_of_palette
from volseg.data.volume_formats.tiff_stack import TIFF_ERRORS, TIFF_SUFFIXES, TiffPages
from volseg.errors import UserError

__all__ = ["SECTION_SUFFIXES", "SectionHeader", "read_section", "read_section_header"]

PNG_SUFFIX = ".png"
SECTION_SUFFIXES = (PNG_SUFFIX, *TIFF_SUFFIXES)

# Pillow says by a SyntaxError that a file is no PNG.
_PNG_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)
# how a PNG file stores its pixels, in Pillow's words, and what they are read as
_PNG_TYPES = {
    "1": np.uint8,
    "L": np.uint8,
    "I;16B": np.uint16,
    "RGB": np.uint32,
    **dict.fromkeys(("P", "P;4", "P;2", "P;1"), np.uint8),  # labels with colours to show them: the labels
}


@dataclass(frozen=True)
class SectionHeader:
    """What a section's file says of itself.

    Attributes:
        shape: (H, W).
        dtype: of the pixels; uint32 where colours stand for ids.
        kind: what they look like.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    kind: GreyKind


def read_section_header(path: Path) -> SectionHeader:
    """Shape and type of a section; its pixels are not decoded.

    Raises:
        UserError: the file is missing, cannot be read, or is not one section of 8-bit or 16-bit values, 8-bit RGB, or
            whatever values TIFF holds.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        pages = TiffPages(path)
        pages.close()
        depth, height, width = pages.shape
        if depth != 1:
            raise UserError(
                f"{path}: a file of a section folder is one section. Received: {depth} pages. Give it alone."
            )
        return SectionHeader((height, width), pages.dtype, pages.kind)
    try:
        # The class and not Image.open: that refuses sections above 179 million pixels.
        with PngImageFile(path) as image:
            width, height = image.size
            stored_as = image.tile[0][3]
            palette = image.getpalette()
    except _PNG_ERRORS as error:
        raise unreadable(path, error) from error
    if stored_as not in _PNG_TYPES:
        raise UserError(
            f"{path}: grey values of 8 or 16 bits, or ids as 8-bit RGB, are needed. Received: PNG {stored_as}. "
            "Convert it."
        )
    dtype = np.dtype(_PNG_TYPES[str(stored_as)])
    kind: GreyKind = "RGB" if dtype == np.uint32 else "grey values"
    if palette is not None:
        kind = kind_of_palette(np.reshape(palette, (-1, 3)))
    return SectionHeader((height, width), dtype, kind)


def read_section(path: Path) -> NDArray[Any]:
    """Pixels (H, W) of a section whose header was read.

    Raises:
        UserError: the file is damaged or gone.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        pages = TiffPages(path)
        try:
            return pages.page(0)
        except TIFF_ERRORS as error:
            raise unreadable(path, error) from error
        finally:
            pages.close()
    try:
        with PngImageFile(path) as image:
            pixels = np.asarray(image)
    except _PNG_ERRORS as error:
        raise unreadable(path, error) from error
    return ids_from_colors(pixels) if pixels.ndim == 3 else pixels
