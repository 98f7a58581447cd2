# SPDX-License-Identifier: Apache-2.0
"""Whole numbers of a label map that was read as floating point."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError

__all__ = ["round_labels"]

_WHOLE_NUMBER_TOLERANCE = 1e-3


def round_labels(label: NDArray[Any], name: str = "label") -> NDArray[Any]:
    """Whole numbers of a label map that was read as floating point; one of an integer type is returned as it is.

    A file with a scale slope reads as 5.00000018, and truncation or ``== 5`` would lose voxels.

    Args:
        label: label map of any shape.
        name: what an error calls it, best the file.

    Returns:
        The same shape, int32 if it was rounded.

    Raises:
        UserError: a value is further than 1e-3 from a whole number, so it was interpolated or is no label map.
    """
    if label.dtype.kind in "iub":
        return label
    with np.errstate(invalid="ignore"):  # infinity less infinity
        rounded = np.rint(label)
        error = label - rounded
    np.abs(error, out=error)
    if not error.max(initial=0) <= _WHOLE_NUMBER_TOLERANCE:  # negated so that NaN counts as wrong
        wrong = label[~(error <= _WHOLE_NUMBER_TOLERANCE)]
        raise UserError(
            f"{name}: label codes are not whole numbers, got {wrong[0]:g}; give a label map, and resample it only with "
            "nearest neighbour"
        )
    return rounded.astype(np.int32)
