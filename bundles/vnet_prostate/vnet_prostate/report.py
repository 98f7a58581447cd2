# SPDX-License-Identifier: Apache-2.0
"""Report the size of a segmented prostate, and warn of implausible results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import generate_spatial_bounding_box

from vnet_prostate.scanned_box import scanned_box
from volseg.transforms.checks import slice_axis

__all__ = ["gland_statistics"]

# of 42 glands of the Medical Segmentation Decathlon and of PROMISE12, two are larger: 315 ml
VOLUME_ML = (10.0, 250.0)
# the shortest of these glands is 29 mm from base to apex
THICKNESS_MM = 40.0
# in plane, outlines of a gland that was cut end before the edge, beyond which the network sees nothing
EDGE_MM = 5.0


def gland_statistics(
    image: np.ndarray, labels: np.ndarray, affine: np.ndarray, window_mm: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return volume and extents of the gland.

    Args:
        image: MRI ``(X, Y, Z)``; blank planes around it are left out of the field of view.
        labels: 1 in the gland, ``(X, Y, Z)``.
        affine: voxel to RAS in mm.
        window_mm: what the network sees around the middle of the scan, along the voxel axes closest to right, front
            and head; ``None``: all of it.

    Returns:
        ``gland_ml``; ``extent_mm`` along the voxel axes closest to ``right_left``, ``anterior_posterior`` and
        ``superior_inferior``; ``warnings``, a list of sentences; ``legend``, label to text for a picture.
    """
    start, end = generate_spatial_bounding_box(torch.as_tensor(image)[None], scanned_box, allow_smaller=True)
    labels = labels[tuple(slice(a, b) for a, b in zip(start, end, strict=True))]
    to_ras = nib.io_orientation(affine)
    spacing_mm = nib.affines.voxel_sizes(affine)
    occupied = [np.flatnonzero(labels.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    extent_mm = [float((o[-1] - o[0] + 1) * s) if o.size else 0.0 for o, s in zip(occupied, spacing_mm, strict=True)]
    gland_ml = float(np.count_nonzero(labels) * abs(np.linalg.det(affine[:3, :3])) / 1000)
    names = ("right_left", "anterior_posterior", "superior_inferior")
    window = np.full(3, np.inf) if window_mm is None else np.asarray(window_mm)[to_ras[:, 0].astype(int)]
    return {
        "gland_ml": round(gland_ml, 2),
        "extent_mm": {names[int(to_ras[axis, 0])]: round(extent_mm[axis], 1) for axis in np.argsort(to_ras[:, 0])},
        "warnings": [
            *_thickness_warnings(labels.shape, spacing_mm, slice_axis(affine)),
            *_gland_warnings(labels.shape, spacing_mm, occupied, slice_axis(affine), gland_ml, window),
        ],
        "legend": {1: f"prostate {gland_ml:.0f} ml"},
    }


def _thickness_warnings(shape: Sequence[int], spacing_mm: np.ndarray, axis: int) -> list[str]:
    """Return what is wrong with the scan itself."""
    thickness_mm = float(shape[axis] * spacing_mm[axis])
    if thickness_mm >= THICKNESS_MM:
        return []
    return [
        f"the scan covers {thickness_mm:.0f} mm from foot to head, less than most glands need "
        f"({THICKNESS_MM:.0f} mm); is the spacing of its slices right?"
    ]


def _gland_warnings(
    shape: Sequence[int],
    spacing_mm: np.ndarray,
    occupied: list[np.ndarray],
    through_plane: int,
    gland_ml: float,
    window_mm: np.ndarray,
) -> list[str]:
    """Return what a reader should know before trusting the result."""
    if gland_ml == 0:
        return ["no prostate found."]
    found = []
    if not VOLUME_ML[0] <= gland_ml <= VOLUME_ML[1]:
        found.append(f"unusual gland volume: {gland_ml:.0f} ml, usually {VOLUME_ML[0]:.0f} to {VOLUME_ML[1]:.0f} ml.")
    for axis, where in enumerate(occupied):
        free_mm = min(where[0], shape[axis] - 1 - where[-1]) * spacing_mm[axis]
        if free_mm == 0 or (axis != through_plane and free_mm < EDGE_MM):
            edge = "first or last slice" if axis == through_plane else "edge of the image"
            found.append(f"gland cut off by the field of view: it reaches the {edge}.")
            continue
        # the outer faces of the mask may stop a voxel short of the window, whose grid is another
        reach_mm = (np.abs(where[[0, -1]] - (shape[axis] - 1) / 2).max() + 1.5) * spacing_mm[axis]
        if reach_mm >= window_mm[axis] / 2:
            found.append(
                f"gland cut off by the network's window: it reaches the edge of the middle {window_mm[axis]:.0f} mm, "
                "which is all the network sees."
            )
    return found
