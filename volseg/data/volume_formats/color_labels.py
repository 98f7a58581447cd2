# SPDX-License-Identifier: Apache-2.0
"""Instance ids that are stored as colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ids_from_colors"]


def ids_from_colors(colors: NDArray[Any]) -> NDArray[np.uint32]:
    """Ids R * 65536 + G * 256 + B, as in the label tiles of MitoEM.

    Args:
        colors: uint8 (..., 3).

    Returns:
        uint32 (...).
    """
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red * 65536 + green * 256 + blue
