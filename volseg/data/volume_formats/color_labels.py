# SPDX-License-Identifier: Apache-2.0
"""Instance ids that are stored as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError

__all__ = ["grey_from_ids", "ids_from_colors"]


def ids_from_colors(colors: NDArray[Any]) -> NDArray[np.uint32]:
    """Ids R * 65536 + G * 256 + B, as in the label tiles of MitoEM.

    Args:
        colors: uint8 (..., 3).

    Returns:
        uint32 (...).
    """
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red * 65536 + green * 256 + blue


def grey_from_ids(path: Path, ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Grey values that were stored as colours of three equal channels.

    Args:
        path: for the error.
        ids: from :func:`ids_from_colors`, any shape.

    Raises:
        UserError: a colour that is no shade of grey.
    """
    grey = (ids & 255).astype(np.uint8)
    if (ids != grey * np.uint32(0x010101)).any():
        raise UserError(
            f"{path}: sections must have one scale of grey values, got colours among sections of 8 bits; convert it "
            "to grey values"
        )
    return grey
