# SPDX-License-Identifier: Apache-2.0
"""See that a volume is one that a bundle can work on: what every modality has in common."""

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

__all__ = ["CheckVolumed"]

logger = logging.getLogger(__name__)


class CheckVolumed(MapTransform):
    """Mend what can be mended in a volume and refuse what is none; a bundle's own check adds its modality.

    Voxels that are not finite become ``background``. Nothing else changes.

    Args:
        keys: entries with volumes ``(1, X, Y, Z)``, in any axis order.
        minimum_slices: along the axis closest to the patient's.
        background: intensity of nothing.
        subject: what an error says is needed, such as "a chest CT".
        oblique_degrees: a larger angle between the volume's axes and the patient's is worth a warning.

    Raises:
        UserError: too few slices, or intensities that :meth:`check_intensities` refuses.
    """

    def __init__(
        self,
        keys: KeysCollection,
        minimum_slices: int,
        background: float,
        subject: str,
        oblique_degrees: float,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.minimum_slices = minimum_slices
        self.background = background
        self.subject = subject
        self.oblique_degrees = oblique_degrees

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.check(d[key])
        return d

    def check(self, volume: MetaTensor) -> MetaTensor:
        """The volume ``(1, X, Y, Z)``, finite."""
        name = volume.meta.get("filename_or_obj", "image")
        affine = np.asarray(volume.affine)
        slices = volume.shape[1 + slice_axis(affine)]
        if slices < self.minimum_slices:
            raise UserError(
                f"{name}: too few slices for {self.subject}. Received: {slices}, at least {self.minimum_slices} are "
                "needed. Give the folder of the whole series, not one file of it."
            )
        finite = volume.isfinite()
        if not finite.all():
            logger.warning("%s: %d voxels are not finite and become %g", name, int((~finite).sum()), self.background)
            volume[~finite] = self.background
        self.check_intensities(name, float(volume.min()), float(volume.max()))
        if (tilt := _tilt_degrees(affine)) > self.oblique_degrees:
            logger.warning("%s: axes are %.0f degrees oblique to the patient's, results may suffer", name, tilt)
        return volume

    def check_intensities(self, name: str, low: float, high: float) -> None:
        """Refuse intensities that are not of the modality, with a ``UserError``."""
        raise NotImplementedError


def slice_axis(affine: np.ndarray) -> int:
    """The voxel axis closest to the patient's, of an affine (4, 4) from voxels to RAS mm."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def _tilt_degrees(affine: np.ndarray) -> float:
    """Largest angle between a voxel axis and the patient's axis closest to it."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1))).max())
