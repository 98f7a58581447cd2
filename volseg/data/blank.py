# SPDX-License-Identifier: Apache-2.0
"""Voxels without tissue: borders of aligned stacks, black or missing sections, what is not a number.

A section of tissue has noise. A square of 15 x 15 pixels of exactly one value, whichever, is therefore no picture of
anything: something filled it. Real sections have no such square of even 4 x 4 pixels. The rule looks 28 pixels far and
within one section, so that a block that is read with so many pixels around it gives what the whole volume gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["BLANK_REACH", "blank_warnings", "find_blank", "find_blank_in", "read_with_blank"]

_WIDTH = 15  # of the square; at the border of a section half of it is enough
_CELL = 7  # any such square, or half square at the border, holds a cell of a grid of this width
BLANK_REACH = 2 * (_WIDTH - 1)  # pixels around a region that decide on it


def find_blank(voxels: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels that are not finite, in a square of exactly one value in their section, or within 14 equal pixels of it.

    Args:
        voxels: (D, H, W), whole sections or sections with :data:`BLANK_REACH` pixels more at each side.

    Returns:
        (D, H, W).
    """
    blank = np.zeros(voxels.shape, bool)
    for z, stored in enumerate(voxels):
        section = stored
        if section.dtype.kind == "f":
            blank[z] = ~np.isfinite(section)
            # SciPy has no halves
            section = np.where(blank[z], 0, section).astype(np.result_type(section.dtype, np.float32))
        if section.size and _has_constant_cell(section):
            blank[z] |= _filled(section)
    return blank


def find_blank_in(volume: Any, region: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    """:func:`find_blank` of a region of a volume, see :func:`read_with_blank`."""
    return read_with_blank(volume, region)[1]


def read_with_blank(volume: Any, region: tuple[slice, slice, slice]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Voxels of a region and which of them are blank; as much around the region as counts for that is read too.

    Args:
        volume: (D, H, W), read by slices.
        region: slices with a start and a stop inside the volume.
    """
    z, *in_plane = region
    around = [
        slice(max(0, along.start - BLANK_REACH), min(n, along.stop + BLANK_REACH))
        for along, n in zip(in_plane, volume.shape[1:], strict=True)
    ]
    y, x = (
        slice(along.start - wider.start, along.stop - wider.start)
        for along, wider in zip(in_plane, around, strict=True)
    )
    voxels = np.asarray(volume[(z, *around)])
    return voxels[:, y, x], find_blank(voxels)[:, y, x]


def blank_warnings(fraction: float) -> list[str]:
    """What a reader of a result should know of the blank part of a volume, as a fraction of its voxels."""
    if fraction == 1:
        return ["no tissue: all voxels are blank (one value, or not a number); check the file."]
    if fraction > 0:
        return [f"{100 * fraction:.2g} % of the voxels are blank (one value, or not a number) and get no labels."]
    return []


def _has_constant_cell(section: NDArray[Any]) -> bool:
    """Whether a cell of the grid has one value: without one there is no square, at a tenth of the cost."""
    rows, columns = (np.arange(0, n, _CELL) for n in section.shape)
    low, high = (
        extreme.reduceat(extreme.reduceat(section, rows, axis=0), columns, axis=1)
        for extreme in (np.minimum, np.maximum)
    )
    return bool((low == high).any())


def _filled(section: NDArray[Any]) -> NDArray[np.bool_]:
    """Squares of one value in a section (H, W), and what continues them with the same value."""
    centres = ndimage.minimum_filter(section, _WIDTH) == ndimage.maximum_filter(section, _WIDTH)
    filled = ndimage.maximum_filter(centres, _WIDTH, mode="constant")
    if not filled.any():
        return filled
    same_row, same_column = section[:, 1:] == section[:, :-1], section[1:] == section[:-1]
    for _ in range(_WIDTH - 1):
        before = filled.copy()
        filled[:, 1:] |= before[:, :-1] & same_row
        filled[:, :-1] |= before[:, 1:] & same_row
        filled[1:] |= before[:-1] & same_column
        filled[:-1] |= before[1:] & same_column
    return filled
