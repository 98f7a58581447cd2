# SPDX-License-Identifier: Apache-2.0
"""Check that a volume is an axial MRI that this bundle can process."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor

from volseg.transforms.checks import CheckVolumed, slice_axis

__all__ = ["CheckMRId"]

logger = logging.getLogger(__name__)

# pelvic MRI shows at least the gland and its surroundings, at most the width of the whole body
EXTENT_MM = (60.0, 600.0)
# T2-weighted scans of the prostate have slices of 0.8 to 4 mm
THICKEST_MM = 5.0
# Hounsfield units of air and of soft tissue, and the least shares of all voxels and of those above air that have them
# in CTs; of 21 T2-weighted scans with 1024 subtracted, at most 34 % of the latter lie there
AIR_HU, SOFT_TISSUE_HU = (-1100, -900), (-150, 150)
AIR_SHARE, SOFT_TISSUE_SHARE = 0.05, 0.6


class CheckMRId(CheckVolumed):
    """Refuse volumes that are not an MRI of the prostate; set non-finite voxels to the lowest intensity.

    A warning is logged for non-axial or very thick slices, for extents that no pelvic MRI has, such as those of a file
    without spacing, and for the Hounsfield units of a CT.

    Args:
        keys: entries with T2-weighted volumes ``(1, X, Y, Z)``, in any axis order.
        minimum_slices: minimum number along the axis closest to the patient's long axis.

    Raises:
        UserError: too few slices, or one or two intensities in all voxels.
    """

    def __init__(self, keys: KeysCollection, minimum_slices: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, minimum_slices, None, "an MRI of the prostate", 40.0, allow_missing_keys)

    def change(self, entry: MetaTensor) -> MetaTensor:
        volume = super().change(entry)
        name = volume.meta.get("filename_or_obj", "image")
        affine = np.asarray(volume.affine)
        spacing_mm = nib.affines.voxel_sizes(affine)
        axis = slice_axis(affine)
        if spacing_mm[axis] < 0.9 * spacing_mm.max():
            shown = " x ".join(f"{s:.2f}" for s in spacing_mm)
            logger.warning("%s: slices must be axial, got a spacing of %s mm; results may suffer", name, shown)
        if spacing_mm[axis] > THICKEST_MM:
            logger.warning(
                "%s: slices are %.1f mm apart, in MRI of the prostate at most %.0f mm; check the spacing",
                *(name, spacing_mm[axis], THICKEST_MM),
            )
        in_plane_mm = np.delete(volume.shape[1:] * spacing_mm, axis)
        if min(in_plane_mm) < EXTENT_MM[0] or max(in_plane_mm) > EXTENT_MM[1]:
            shown = " x ".join(f"{e:.0f}" for e in in_plane_mm)
            logger.warning("%s: no pelvic MRI has a field of view of %s mm in plane; check the spacing", name, shown)
        if _is_ct(volume):
            logger.warning("%s: grey values are Hounsfield units of a CT; the weights learnt T2-weighted MRI", name)
        return volume


def _is_ct(volume: MetaTensor) -> bool:
    values = volume.as_tensor()
    air = (values >= AIR_HU[0]) & (values <= AIR_HU[1])
    tissue = values[values > AIR_HU[1] / 2]
    soft = (tissue >= SOFT_TISSUE_HU[0]) & (tissue <= SOFT_TISSUE_HU[1])
    return bool(air.float().mean() >= AIR_SHARE and tissue.numel() and soft.float().mean() >= SOFT_TISSUE_SHARE)
