# SPDX-License-Identifier: Apache-2.0
"""See that a volume is a CT this bundle can work on."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from volseg.errors import UserError

__all__ = ["CheckCTd"]

logger = logging.getLogger(__name__)

AIR_HU = -1000.0
# any CT of the chest holds lung or air below this, and no image scaled to 0..255 or 0..1 does
LOW_HU = -500.0
OBLIQUE_DEGREES = 20.0


class CheckCTd(MapTransform):
    """Mend what can be mended in a CT and refuse what is none.

    Voxels that are not finite become air. Nothing else changes.

    Args:
        keys: entries with CTs ``(1, X, Y, Z)`` in HU, in any axis order.
        minimum_slices: along the axis closest to the patient's.

    Raises:
        UserError: too few slices, or intensities that cannot be HU.
    """

    def __init__(self, keys: KeysCollection, minimum_slices: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.minimum_slices = minimum_slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.check(d[key])
        return d

    def check(self, ct: MetaTensor) -> MetaTensor:
        """The CT ``(1, X, Y, Z)``, finite."""
        name = ct.meta.get("filename_or_obj", "CT")
        affine = np.asarray(ct.affine)
        axis = int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])
        slices = ct.shape[1 + axis]
        if slices < self.minimum_slices:
            raise UserError(
                f"{name}: too few slices for a chest CT. Received: {slices}, at least {self.minimum_slices} are "
                "needed. Give the folder of the whole series, not one file of it."
            )
        finite = ct.isfinite()
        if not finite.all():
            logger.warning("%s: %d voxels are not finite and become air", name, int((~finite).sum()))
            ct[~finite] = AIR_HU
        low, high = float(ct.min()), float(ct.max())
        if low > LOW_HU:
            raise UserError(
                f"{name}: not in Hounsfield units, no voxel is as dark as lung. Received: {low:g} to {high:g}. "
                "Apply the rescale slope and intercept of the original file."
            )
        if (tilt := _tilt_degrees(affine)) > OBLIQUE_DEGREES:
            logger.warning("%s: axes are %.0f degrees oblique to the patient's, results may suffer", name, tilt)
        return ct


def _tilt_degrees(affine: np.ndarray) -> float:
    """Largest angle between a voxel axis and the patient's axis closest to it."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1))).max())
