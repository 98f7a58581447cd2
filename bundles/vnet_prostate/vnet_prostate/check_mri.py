# SPDX-License-Identifier: Apache-2.0
"""See that a volume is an axial MRI this bundle can work on."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.transforms.check_volume import CheckVolumed, slice_axis

__all__ = ["CheckMRId"]

logger = logging.getLogger(__name__)

# pelvic MRI shows at least the gland with its surroundings, and at most a whole body's width
EXTENT_MM = (60.0, 600.0)


class CheckMRId(CheckVolumed):
    """Refuse what is no MRI of the prostate; voxels that are not finite become the lowest intensity.

    Slices that are not axial and extents that no pelvic MRI has, such as those of a file without spacing, get a
    warning.

    Args:
        keys: entries with T2-weighted volumes ``(1, X, Y, Z)``, in any axis order.
        minimum_slices: along the axis closest to the patient's.

    Raises:
        UserError: too few slices, or a constant intensity.
    """

    def __init__(self, keys: KeysCollection, minimum_slices: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, minimum_slices, None, "an MRI of the prostate", 40.0, allow_missing_keys)

    def check(self, volume: MetaTensor) -> MetaTensor:
        """The volume ``(1, X, Y, Z)``, finite."""
        volume = super().check(volume)
        name = volume.meta.get("filename_or_obj", "image")
        affine = np.asarray(volume.affine)
        spacing_mm = nib.affines.voxel_sizes(affine)
        axis = slice_axis(affine)
        if spacing_mm[axis] < 0.9 * spacing_mm.max():
            logger.warning(
                "%s: slices are not axial, results may suffer. Received: spacing %s mm",
                name,
                " x ".join(f"{s:.2f}" for s in spacing_mm),
            )
        in_plane_mm = [
            float(n * s) for i, (n, s) in enumerate(zip(volume.shape[1:], spacing_mm, strict=True)) if i != axis
        ]
        if min(in_plane_mm) < EXTENT_MM[0] or max(in_plane_mm) > EXTENT_MM[1]:
            logger.warning(
                "%s: no field of view of a pelvic MRI, is the spacing right? Received: %s mm in plane",
                name,
                " x ".join(f"{e:.0f}" for e in in_plane_mm),
            )
        return volume

    def check_intensities(self, name: str, low: float, high: float) -> None:
        """A constant image shows nothing."""
        if low == high:
            raise UserError(f"{name}: nothing in the image. Received: {low:g} in every voxel. Choose another file.")
