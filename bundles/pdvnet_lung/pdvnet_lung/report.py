# SPDX-License-Identifier: Apache-2.0
"""Report volume and density of segmented lobes, and warn of implausible results."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from pdvnet_lung.lobes import LEFT, LOBES, RIGHT

__all__ = ["lobe_statistics"]

EMPHYSEMA_HU = -950.0
MINIMUM_LUNG_ML = 200.0
MAXIMUM_LUNG_ML = 10000.0
CUT_AREA_CM2 = 10.0
# smallest and largest share of the lungs' volume that a lobe has in 283 maps of the TotalSegmentator data set
LOBE_SHARES = ((0.081, 0.410), (0.078, 0.336), (0.071, 0.345), (0.025, 0.287), (0.071, 0.417))


def lobe_statistics(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Return volume, density and fraction of emphysema-like voxels of each lobe.

    Args:
        image: CT in HU ``(X, Y, Z)``.
        labels: lobes ``(X, Y, Z)``.
        affine: voxel to RAS in mm.

    Returns:
        ``lobes``, for each name ``volume_ml``, ``mean_hu`` and ``below_minus_950_hu_percent`` (the last two ``None``
        for an empty lobe); ``lungs_ml``; ``warnings``, a list of sentences; ``legend``, label to text for a picture.
    """
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    inside = labels > 0  # a fifth of a CT; the sums below need nothing else
    lobe, hu = labels[inside], image[inside]
    count = np.bincount(lobe, minlength=len(LOBES) + 1)
    hu_sum = np.bincount(lobe, weights=hu, minlength=len(count))
    low = np.bincount(lobe[hu < EMPHYSEMA_HU], minlength=len(count))
    lobes = {
        name: {
            "volume_ml": round(float(count[value] * voxel_ml), 2),
            "mean_hu": round(float(hu_sum[value] / count[value]), 1) if count[value] else None,
            "below_minus_950_hu_percent": round(float(100 * low[value] / count[value]), 2) if count[value] else None,
        }
        for value, name in LOBES.items()
    }
    lungs_ml = float(count.sum() * voxel_ml)
    return {
        "lobes": lobes,
        "lungs_ml": round(lungs_ml, 2),
        "warnings": _warnings(labels, affine, count * voxel_ml),
        "legend": {value: f"{name} {lobes[name]['volume_ml']:.0f} ml" for value, name in LOBES.items()},
    }


def _warnings(labels: np.ndarray, affine: np.ndarray, volume_ml: np.ndarray) -> list[str]:
    """Return what a reader should know before trusting the result."""
    if volume_ml[1:].sum() < MINIMUM_LUNG_ML:
        return [f"no lungs found: {volume_ml[1:].sum():.0f} ml of lobes, less than {MINIMUM_LUNG_ML:.0f} ml."]
    found = []
    if volume_ml[1:].sum() > MAXIMUM_LUNG_ML:
        found.append(
            f"implausible lung volume: {volume_ml[1:].sum() / 1000:.0f} l; the weights may not suit this image."
        )
    empty = [name for value, name in LOBES.items() if volume_ml[value] == 0]
    if empty:
        found.append(
            f"empty lobes: {', '.join(empty)}. Possible causes: surgery, a cut field of view, a network failure."
        )
    to_ras = nib.io_orientation(affine)
    ras = nib.apply_orientation(labels, to_ras)
    spacing_mm = nib.affines.voxel_sizes(affine)[np.argsort(to_ras[:, 0])]
    for axis, sides in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
        for side, k in zip(sides, (0, -1), strict=True):
            area_cm2 = np.count_nonzero(ras.take(k, axis)) * np.prod(np.delete(spacing_mm, axis)) / 100
            if area_cm2 > CUT_AREA_CM2:
                found.append(f"lungs cut off at the {side}: {area_cm2:.0f} cm2 of lobes in the outermost slice.")
    if not empty:
        found += _unusual_shares(volume_ml)
    left, right = _mean_x(ras, LEFT), _mean_x(ras, RIGHT)
    if left is not None and right is not None and left > right:
        found.append("left lobes lie on the patient's right; the orientation in the file or the weights may be wrong.")
    return found


def _unusual_shares(volume_ml: np.ndarray) -> list[str]:
    shares = volume_ml / volume_ml[1:].sum()
    return [
        f"{name} holds {100 * shares[value]:.0f} % of the lungs; patients have {100 * low:.0f} to {100 * high:.0f} %."
        for (value, name), (low, high) in zip(LOBES.items(), LOBE_SHARES, strict=True)
        if volume_ml[value] and not low <= shares[value] <= high
    ]


def _mean_x(ras: np.ndarray, values: tuple[int, ...]) -> float | None:
    """Return the mean index of some lobes along X, which runs from the patient's left to right."""
    chosen = np.isin(np.arange(256), values)  # lookup table
    profile = np.count_nonzero(chosen[ras], axis=(1, 2))
    return float(np.average(np.arange(len(profile)), weights=profile)) if profile.any() else None
