# SPDX-License-Identifier: Apache-2.0
"""How much of the border between lobes lies on a fissure that the CT shows: a sign that needs no reference."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pdvnet_lung.fissures import fissure_voxels
from pdvnet_lung.lobes import LOBES

__all__ = ["visible_fissure_shares"]

# width of the filter; in thick slices a fissure is as wide as they are
SIGMA_MM, SIGMA_VOXELS = 1.5, 0.7
# a plate is brighter than both its sides by this much at least, and bends little along itself
CONTRAST_HU = 20.0
BEND = 0.5
# between the normals of plate and border: 30 degrees
ALIGNED = 0.85
# how far from the border its fissure may be seen, and how far away there should be none
REACH_MM, AWAY_MM = 1.5, 6.0
# no plates at the lungs' own border
MARGIN_MM = 3.0


def visible_fissure_shares(
    hu: NDArray[np.float32], lobes: NDArray[np.uint8], affine: NDArray[np.float64]
) -> dict[str, float]:
    """Find plates by the eigenvalues of the Hessian, and count where they run along the lobes' borders.

    Memory: about 60 bytes per voxel; give the part of a CT that holds the lungs.

    Args:
        hu: CT ``(X, Y, Z)``.
        lobes: 0 to 5 ``(X, Y, Z)``.
        affine: voxel to RAS in mm.

    Returns:
        ``at_border``: the share of border voxels between lobes of one lung with a plate within 1.5 mm, parallel to the
        border; ``away``: the same share for the surfaces 6 mm to both sides, which is what vessels and noise give. NaN
        without such voxels.
    """
    spacing = nib.affines.voxel_sizes(affine)
    border = fissure_voxels(lobes)
    distance = ndimage.distance_transform_edt(~border, sampling=spacing).astype(np.float32)
    inside = ndimage.distance_transform_edt(lobes > 0, sampling=spacing) > MARGIN_MM
    plates = np.nonzero(inside & (distance <= AWAY_MM + REACH_MM))
    is_plate, normal = _plates(hu, plates, spacing)
    surfaces = {
        "at_border": (border & inside, _lobe_normals(lobes, spacing)),
        "away": (inside & (abs(distance - AWAY_MM) < spacing.max() / 2), _gradient(distance, spacing)),
    }
    return {
        name: _share(surface, field, plates, is_plate, normal, spacing) for name, (surface, field) in surfaces.items()
    }


def _plates(
    hu: NDArray[np.float32], voxels: tuple[NDArray[np.intp], ...], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether each voxel ``(N,)`` lies on a bright plate, and the plate's normal ``(N, 3)``."""
    sigma = max(SIGMA_MM, SIGMA_VOXELS * float(spacing.max()))
    hessian = np.empty((len(voxels[0]), 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            order = np.bincount([i, j], minlength=3).tolist()
            second = ndimage.gaussian_filter(hu, sigma / spacing, order=order)[voxels]
            hessian[:, i, j] = hessian[:, j, i] = second * sigma**2 / (spacing[i] * spacing[j])
    values, vectors = np.linalg.eigh(hessian)  # ascending
    across, along = -values[:, 0], np.abs(values[:, 1:]).max(axis=1, initial=0)
    return (across > CONTRAST_HU) & (along < BEND * across), vectors[:, :, 0]


def _share(
    surface: NDArray[np.bool_],
    field: NDArray[np.float32],
    voxels: tuple[NDArray[np.intp], ...],
    is_plate: NDArray[np.bool_],
    normal: NDArray[np.float32],
    spacing: NDArray[np.float64],
) -> float:
    """Share of a surface with a plate along it; ``field`` ``(3, X, Y, Z)`` is normal to the surface there."""
    if not surface.any():
        return float("nan")
    nearest = ndimage.distance_transform_edt(~surface, sampling=spacing, return_distances=False, return_indices=True)
    across = field[(slice(None), *(nearest[axis][voxels] for axis in range(3)))].T  # (N, 3)
    across = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    seen = np.zeros(surface.shape, bool)
    seen[voxels] = is_plate & (np.abs((across * normal).sum(axis=1)) > ALIGNED)
    if not seen.any():
        return 0.0
    near = ndimage.distance_transform_edt(~seen, sampling=spacing) <= REACH_MM
    return float(near[surface].mean())


def _gradient(field: NDArray[np.float32], spacing: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smoothed gradient ``(3, X, Y, Z)``."""
    smooth = SIGMA_MM / spacing
    parts = [ndimage.gaussian_filter(field, smooth, order=np.eye(3, dtype=int)[axis].tolist()) for axis in range(3)]
    return np.stack([part / edge for part, edge in zip(parts, spacing, strict=True)])


def _lobe_normals(lobes: NDArray[np.uint8], spacing: NDArray[np.float64]) -> NDArray[np.float32]:
    """In each lobe the gradient of its own smoothed mask ``(3, X, Y, Z)``."""
    normals = np.zeros((3, *lobes.shape), np.float32)
    for lobe in LOBES:
        mask = lobes == lobe
        if mask.any():
            normals[:, mask] = _gradient(mask.astype(np.float32), spacing)[:, mask]
    return normals
