# SPDX-License-Identifier: Apache-2.0
"""Check that a volume can be processed, whatever its modality, and that a label map holds what a network can learn."""

from __future__ import annotations

import logging
from typing import cast

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.label_maps.label_file import round_labels
from volseg.transforms.entries import EachEntryd

__all__ = ["CheckLabelsd", "CheckVolumed"]

logger = logging.getLogger(__name__)

# longer than any patient, and shorter than any scan of one
LONGEST_MM, SHORTEST_MM = 3000.0, 10.0


class CheckVolumed(EachEntryd):
    """Repair a volume where possible and refuse it otherwise; subclasses in bundles check their modality.

    Voxels that are not finite become ``background``. Volumes without a channel axis, as MONAI Deploy passes them, get
    one. Nothing else changes.

    Args:
        keys: entries with volumes ``(1, X, Y, Z)`` or ``(X, Y, Z)``, in any axis order.
        minimum_slices: along the voxel axis closest to the patient's long axis.
        background: intensity of empty space; ``None``: the lowest finite one of the volume.
        subject: what the error asks for, such as "a chest CT".
        oblique_degrees: angle between the volume's axes and the patient's above which a warning is logged.

    Raises:
        UserError: too few slices, one or two values in all voxels, or intensities that :meth:`check_intensities`
            refuses.
    """

    def __init__(
        self,
        keys: KeysCollection,
        minimum_slices: int,
        background: float | None,
        subject: str,
        oblique_degrees: float,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.minimum_slices = minimum_slices
        self.background = background
        self.subject = subject
        self.oblique_degrees = oblique_degrees

    def change(self, entry: MetaTensor) -> MetaTensor:
        """Return the volume ``(1, X, Y, Z)`` with finite voxels."""
        if entry.ndim == 3:
            entry = cast(MetaTensor, entry[None])
        name = entry.meta.get("filename_or_obj", "image")
        affine = np.asarray(entry.affine)
        slices = entry.shape[1 + slice_axis(affine)]
        if slices < self.minimum_slices:
            raise UserError(
                f"{name}: too few slices for {self.subject}: at least {self.minimum_slices} needed, got {slices}; "
                "give the folder of the whole series, not one file of it"
            )
        extent_mm = np.array(entry.shape[1:]) * nib.affines.voxel_sizes(affine)
        if not SHORTEST_MM <= extent_mm.max() <= LONGEST_MM:
            size = " x ".join(f"{length:.3g}" for length in extent_mm)
            than = "larger than any patient" if extent_mm.max() > LONGEST_MM else "smaller than any scan of a patient"
            raise UserError(f"{name}: {size} mm is {than}; repair the spacing in the header")
        finite = entry.isfinite()
        if not finite.all():
            lowest = float(entry[finite].min()) if finite.any() else 0.0
            background = lowest if self.background is None else self.background
            logger.warning("%s: set %d non-finite voxels to %g", name, int((~finite).sum()), background)
            entry[~finite] = background
        low, high = float(entry.min()), float(entry.max())
        if low == high:
            raise UserError(f"{name}: image is constant, got {low:g} in every voxel; choose another file")
        self.check_intensities(name, low, high)
        if int((entry == low).sum()) + int((entry == high).sum()) == entry.numel():
            raise UserError(
                f"{name}: every voxel is {low:g} or {high:g}, a mask and not {self.subject}; give the image"
            )
        if (tilt := _tilt_degrees(affine)) > self.oblique_degrees:
            logger.warning("%s: axes are tilted %.0f degrees from the patient's, results may suffer", name, tilt)
        return entry

    def check_intensities(self, name: str, low: float, high: float) -> None:
        """Raise ``UserError`` for intensities that the modality cannot have; here it can have all."""


def slice_axis(affine: np.ndarray) -> int:
    """Return the voxel axis closest to the patient's long axis, from an affine (4, 4), voxel to RAS in mm."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def _tilt_degrees(affine: np.ndarray) -> float:
    """Return the largest angle between a voxel axis and the patient axis closest to it."""
    directions = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1))).max())


class CheckLabelsd(EachEntryd):
    """Round label maps stored with a scale slope (5.00000018), refuse invalid labels and warn of empty maps.

    Args:
        keys: entries with label maps ``(1, X, Y, Z)``.
        num_classes: labels run from 0 to ``num_classes - 1``.
        join: whether every label above 0 becomes 1, for zones of one organ, and masks of 0 and 255.

    Raises:
        UserError: a value is not an integer, or a label is out of range.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, join: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.join = join

    def change(self, entry: MetaTensor) -> MetaTensor:
        """Return the rounded labels ``(1, X, Y, Z)``."""
        name = entry.meta.get("filename_or_obj", "label")
        codes = torch.from_numpy(round_labels(entry.as_tensor().numpy(force=True), name))
        if self.join:
            codes = (codes > 0).to(codes.dtype)
        lowest, highest = codes.aminmax()
        if lowest < 0 or highest >= self.num_classes:
            values = torch.unique(codes).tolist()  # sorts a whole CT: only for the message
            hint = (
                "give --join_labels True if every label above 0 is part of the structure"
                if self.num_classes == 2 and lowest >= 0
                else "convert them first (prepare_data does so for known sources)"
            )
            raise UserError(f"{name}: labels must be 0 to {self.num_classes - 1}, got {values[:20]}; {hint}")
        if highest == 0:
            logger.warning("%s: the label map is empty; label the structure, or leave the case out", name)
        if lowest > 0:
            logger.warning("%s: no voxel is background (0); label the structure alone, or leave the case out", name)
        return MetaTensor(codes.to(entry.as_tensor()), meta=entry.meta, applied_operations=entry.applied_operations)
