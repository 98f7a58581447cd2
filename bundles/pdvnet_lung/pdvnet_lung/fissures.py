# SPDX-License-Identifier: Apache-2.0
"""How far predicted fissures lie from the true ones, where Dice of whole lobes hides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pdvnet_lung.lobes import LEFT, LOBES, RIGHT
from volseg.label_maps.case_report import label_measures
from volseg.label_maps.surface_distances import surface_distances

__all__ = ["fissure_voxels", "lobe_measures"]


def lobe_measures(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    affine: NDArray[np.float64],
    labels: Mapping[str, str],
    tolerance_mm: float = 3.0,
) -> dict[str, dict[str, float]]:
    """Score lobes as :func:`volseg.label_maps.case_report.label_measures` does, and their fissures.

    Args:
        prediction, truth: lobes ``(X, Y, Z)``.
        affine: voxel to RAS in mm.
        labels: code to name.
        tolerance_mm: of the surface Dice.

    Returns:
        For each lobe the measures of ``label_measures`` and ``fissure_distance_mm``: the mean distance between its
        predicted and true fissures, both directions pooled. It is infinite where one map has no fissure there, NaN
        where neither has.
    """
    measures = label_measures(prediction, truth, affine, labels, tolerance_mm)
    spacing_mm = nib.affines.voxel_sizes(affine).tolist()
    for value, name in LOBES.items():
        predicted, true = (fissure_voxels(lobes, value) for lobes in (prediction, truth))
        distances = surface_distances(predicted, true, spacing_mm, tolerance_mm)
        measures[name]["fissure_distance_mm"] = distances.average_symmetric_mm
    return measures


def fissure_voxels(lobes: NDArray[Any], lobe: int) -> NDArray[np.bool_]:
    """Voxels of a lobe with a face neighbour in another lobe of the same lung, a mask ``(X, Y, Z)``."""
    mask = lobes == lobe
    lung = LEFT if lobe in LEFT else RIGHT
    others = np.isin(lobes, [other for other in lung if other != lobe])
    return mask & ndimage.binary_dilation(others)
