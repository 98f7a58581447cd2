# SPDX-License-Identifier: Apache-2.0
"""Label maps in files: whole numbers of what was read as floating point, and NIfTI in the geometry of its image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.storage.files import atomic_path

__all__ = ["round_labels", "write_segmentation"]

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


def write_segmentation(
    path: str | Path,
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    qform: tuple[Any, int, int] | None = None,
) -> None:
    """Write a label map ``(X, Y, Z)`` as uint8 NIfTI, whole or not at all.

    Args:
        path: ends in ``.nii.gz``.
        labels: label map.
        affine: voxel to RAS in mm.
        names: names of the labels; they go into the header's comment extension as JSON.
        qform: of an image whose qform says something else than its affine, so that programs that go by either see the
            labels on it: matrix, code, and code of its sform; codes of 0 for an image with neither.
    """
    image = nib.Nifti1Image(labels.astype(np.uint8), affine)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    if qform is not None and qform[1]:
        image.set_qform(np.array(qform[0]), code=qform[1])
        image.header["sform_code"] = qform[2]
    elif qform is not None and np.allclose(image.header.get_base_affine(), affine):
        image.header["sform_code"] = image.header["qform_code"] = 0
    comment = json.dumps({"labels": {str(value): name for value, name in names.items()}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
