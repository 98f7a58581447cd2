# SPDX-License-Identifier: Apache-2.0
"""Measures of the PROMISE12 challenge for the gland, its base and its apex (doi:10.1016/j.media.2013.12.002)."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np

from volseg.label_maps.overlap import confusion_counts, dice_per_label, volumes_ml
from volseg.label_maps.surface_distances import surface_distances
from volseg.transforms.checks import slice_axis

__all__ = ["REGIONS", "gland_measures"]

REGIONS = ("whole", "base", "apex")


def gland_measures(prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, dict[str, float]]:
    """Measure one segmented prostate on the image's own grid.

    Apex and base are the caudal and cranial thirds of the slices from the first to the last slice of the truth, along
    the axis closest to the patient's long axis. If the number of slices is not a multiple of three, both have the
    number of slices nearest to a third. The prediction is cut at the same slices: parts caudal of the truth's first
    slice belong to the apex, parts cranial of the last slice to the base. A cut is part of a region's surface.

    Distances follow MONAI's convention (:mod:`volseg.label_maps.surface_distances`). Tools that weight the surface by
    area, or pool the distances before taking the percentile, give other values where voxels are not cubes.

    Args:
        prediction: integer mask (X, Y, Z); non-zero is prostate.
        truth: mask of the same shape.
        affine: voxel to RAS in mm, (4, 4).

    Returns:
        For each of :data:`REGIONS`: ``dice``; ``hausdorff_95_mm``; ``average_boundary_distance_mm``, symmetric;
        ``relative_volume_difference_percent`` of the truth's volume, positive if the prediction is too large;
        ``absolute_relative_volume_difference_percent``; ``reference_volume_ml`` and ``predicted_volume_ml``.
        If only one of the masks has a region, its Dice is 0 and its distances are infinite; its volume difference is
        -100 % if only the truth has it, infinite if only the prediction does. If neither has it, all but the volumes
        are NaN. A truth of one slice has neither base nor apex. Without a truth there are no regions, and the
        prediction counts for the whole gland only.

    Raises:
        UserError: the shapes differ, the masks are not three-dimensional, or a voxel size is not positive.
    """
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    x_mm, y_mm, z_mm = nib.affines.voxel_sizes(affine).tolist()
    measures = {"whole": _measures(prediction, truth, (x_mm, y_mm, z_mm))}
    parts = _base_and_apex(truth, affine)
    return measures | {name: _measures(prediction[part], truth[part], (x_mm, y_mm, z_mm)) for name, part in parts}


def _base_and_apex(truth: np.ndarray, affine: np.ndarray) -> list[tuple[str, tuple[slice, ...]]]:
    axis = slice_axis(affine)
    occupied = np.flatnonzero(truth.any(axis=tuple(other for other in range(3) if other != axis)))
    if occupied.size == 0:
        lower = upper = slice(0)
    else:
        first, last = int(occupied[0]), int(occupied[-1])
        third = round((last - first + 1) / 3)
        lower, upper = slice(first + third), slice(last + 1 - third, None)
    base, apex = (upper, lower) if affine[2, axis] > 0 else (lower, upper)
    all_before = (slice(None),) * axis
    return [("base", (*all_before, base)), ("apex", (*all_before, apex))]


def _measures(prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    counts = confusion_counts(prediction, truth, num_classes=2)
    surfaces = surface_distances(prediction, truth, spacing_mm, tolerance_mm=0.0)  # surface Dice is not used
    predicted_ml, true_ml = (float(volumes[1]) for volumes in volumes_ml(counts, math.prod(spacing_mm)))
    volume_difference = _relative_difference_percent(predicted_ml, true_ml)
    return {
        "dice": float(dice_per_label(counts)[1]),
        "hausdorff_95_mm": surfaces.hausdorff_95_mm,
        "average_boundary_distance_mm": surfaces.average_symmetric_mm,
        "relative_volume_difference_percent": volume_difference,
        "absolute_relative_volume_difference_percent": abs(volume_difference),
        "reference_volume_ml": true_ml,
        "predicted_volume_ml": predicted_ml,
    }


def _relative_difference_percent(value: float, reference: float) -> float:
    if reference > 0:
        return 100 * ((value - reference) / reference)
    return math.inf if value > 0 else math.nan
