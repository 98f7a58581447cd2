# SPDX-License-Identifier: Apache-2.0
"""Write a segmentation as NIfTI in the geometry of its image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from volseg.storage.files import atomic_path

__all__ = ["write_segmentation"]


def write_segmentation(path: str | Path, labels: np.ndarray, affine: np.ndarray, names: Mapping[int, str]) -> None:
    """Write a label map ``(X, Y, Z)`` as uint8 NIfTI, whole or not at all.

    Args:
        path: ends in ``.nii.gz``.
        labels: label map.
        affine: voxel to RAS in mm.
        names: names of the labels; they go into the header's comment extension as JSON.
    """
    image = nib.Nifti1Image(labels.astype(np.uint8), affine)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    comment = json.dumps({"labels": {str(value): name for value, name in names.items()}})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
