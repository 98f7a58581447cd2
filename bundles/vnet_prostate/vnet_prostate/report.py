# SPDX-License-Identifier: Apache-2.0
"""Report the size of a segmented prostate, and warn of implausible results."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from volseg.transforms.check_volume import slice_axis

__all__ = ["gland_statistics"]

# 24 glands of the Medical Segmentation Decathlon measure 16 to 315 ml
VOLUME_ML = (10.0, 400.0)


def gland_statistics(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Return volume and extents of the gland.

    Args:
        image: MRI ``(X, Y, Z)``; not used, as MRI intensities have no unit.
        labels: 1 in the gland, ``(X, Y, Z)``.
        affine: voxel to RAS in mm.

    Returns:
        ``gland_ml``; ``extent_mm`` along the voxel axes closest to ``right_left``, ``anterior_posterior`` and
        ``superior_inferior``; ``warnings``, a list of sentences; ``legend``, label to text for a picture.
    """
    to_ras = nib.io_orientation(affine)
    spacing_mm = nib.affines.voxel_sizes(affine)
    occupied = [np.flatnonzero(labels.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    extent_mm = [float((o[-1] - o[0] + 1) * s) if o.size else 0.0 for o, s in zip(occupied, spacing_mm, strict=True)]
    gland_ml = float(np.count_nonzero(labels) * abs(np.linalg.det(affine[:3, :3])) / 1000)
    names = ("right_left", "anterior_posterior", "superior_inferior")
    return {
        "gland_ml": round(gland_ml, 2),
        "extent_mm": {names[int(to_ras[axis, 0])]: round(extent_mm[axis], 1) for axis in np.argsort(to_ras[:, 0])},
        "warnings": _warnings(labels, occupied, slice_axis(affine), gland_ml),
        "legend": {1: f"prostate {gland_ml:.0f} ml"},
    }


def _warnings(labels: np.ndarray, occupied: list[np.ndarray], through: int, gland_ml: float) -> list[str]:
    """Return what a reader should know before trusting the result."""
    if gland_ml == 0:
        return ["no prostate found."]
    found = []
    if not VOLUME_ML[0] <= gland_ml <= VOLUME_ML[1]:
        found.append(f"unusual gland volume: {gland_ml:.0f} ml, usually {VOLUME_ML[0]:.0f} to {VOLUME_ML[1]:.0f} ml.")
    for axis, where in enumerate(occupied):
        if where[0] == 0 or where[-1] == labels.shape[axis] - 1:
            edge = "first or last slice" if axis == through else "edge of the image"
            found.append(f"gland cut off by the field of view: it reaches the {edge}.")
    return found
